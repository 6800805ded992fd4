"""The correct stage: the teacher is fine-tuned on the training rows before it teaches.

In: curated rows. Out: `model/`, the corrected teacher, if it is better on held-out rows than the
one that came, and `correction.json`, what was measured. Nothing at all if `method` is none: then
nothing heavy is imported either. Knows nothing of students.
"""

from __future__ import annotations

from collections.abc import Mapping

from potstill.core.files import read_records, write_json
from potstill.core.stage import Artifact, Context, Draft
from potstill.distill.correct_config import CorrectConfig
from potstill.models.corrected import FOLDER
from potstill.records import Example

REPORT = "correction.json"


def run(
    config: CorrectConfig, inputs: Mapping[str, Artifact], draft: Draft, context: Context
) -> None:
    """Run the stage; goes on from whatever a killed run left in the draft."""
    if config.method == "none":
        return
    import torch

    from potstill.distill import launch
    from potstill.distill.correction import correct
    from potstill.distill.memory import raise_malloc_thresholds
    from potstill.distill.ranks import Ranks

    if launch.spread("potstill.distill.correct:run", config, inputs, draft, context):
        return
    raise_malloc_thresholds()
    torch.set_num_threads(context.threads)
    rows, unseen = (
        list(read_records(inputs["curate"].path(name), Example))
        for name in ("train.jsonl", "validation.jsonl")
    )
    corrected = correct(
        config,
        rows,
        unseen,
        target=draft.data / FOLDER,
        seed=context.seed,
        work=draft.work,
        tensorboard=draft.work / "tensorboard",  # it names the time; what is kept must not
        events=context.events,
    )
    if Ranks.here().leads:
        write_json(draft.data / REPORT, corrected.as_dict())
    Ranks.here().wait()
