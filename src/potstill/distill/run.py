"""The distill stage: make a student, distil it, and train what it is compared with.

In: curated rows (and the chunks they come from). Out: three models, `undistilled`, `distilled`
and `finetuned`, the adapter if it is kept, and what was measured on the way. Knows nothing
of how rows were made.

    teacher [--> models/assistant-1, ...] --surgery--> student start
                                         +--> models/undistilled
                                         +--objective of the recipe--> models/distilled
                                         +--cross-entropy on the text alone--> models/finetuned

`finetuned` starts from the same student and sees the same rows in the same order for the same
number of steps, with the same optimizer and schedule; only the teacher is missing. With
`baseline: false` it is not trained. Each part leaves a mark in `draft.work` when it is done, and is
not done again after a kill. Several processes go through it side by side (`launch.py`); the first
of them writes.
"""

from __future__ import annotations

import dataclasses
import gc
import shutil
from collections.abc import Mapping, Sequence
from functools import partial

import torch

from potstill.core.files import read_json, read_records, write_json, write_records
from potstill.core.stage import Artifact, Context, Draft
from potstill.distill import launch
from potstill.distill.chain import through_assistants
from potstill.distill.config import DistillConfig
from potstill.distill.fewer_words import with_fewer_words
from potstill.distill.material import Material, check_there_are_rows, prepare
from potstill.distill.memory import raise_malloc_thresholds
from potstill.distill.objective import Objective
from potstill.distill.opening import open_teacher
from potstill.distill.outcome import COMPARED, DISTILLED, Trained
from potstill.distill.pairs import Encoded, encode_all
from potstill.distill.panel import Panel, resolved
from potstill.distill.ranks import Ranks, is_finished
from potstill.distill.rollouts import Rollout, figures
from potstill.distill.student import Start, make_student, tokenizer_beside
from potstill.distill.train import train_student
from potstill.models import refs
from potstill.models.corrected import corrected
from potstill.models.load import load_tokenizer
from potstill.models.quantised import is_quantised
from potstill.models.save import save_model
from potstill.records import Chunk, Example

FINETUNED = Objective(kd_weight=0.0, ce_weight=1.0, ce_tokens="all")


def run(
    config: DistillConfig, inputs: Mapping[str, Artifact], draft: Draft, context: Context
) -> None:
    """Run the stage; goes on from whatever a killed run left in the draft."""
    if launch.spread("potstill.distill.run:run", config, inputs, draft, context):
        return
    ranks = Ranks.here()
    raise_malloc_thresholds()
    config = config.model_copy(update={"on_policy": config.on_policy.below(context.project)})
    torch.set_num_threads(context.threads)
    uncorrected = config.voices[0].teacher
    config = resolved(config, corrected(inputs["correct"], config.teacher))
    examples = list(read_records(inputs["curate"].path("train.jsonl"), Example))
    unseen = list(read_records(inputs["curate"].path("validation.jsonl"), Example))
    passages = _passages(inputs["ingest"], examples) if config.passages else []
    fewer = None
    if config.student.vocabulary is not None:
        cut = partial(
            with_fewer_words,
            config,
            [*examples, *unseen],
            passages,
            draft.work,
            context.events,
        )
        ranks.first(lambda: ranks.count > 1 and bool(cut()))  # all others find the copy
        fewer = cut()
        config = fewer.config
    tokenizer = load_tokenizer(config.teacher, config.template)
    given = config.student.model
    own = (None if given is None else tokenizer_beside(given, config.template)) or tokenizer
    encoded = encode_all(
        config,
        examples,
        passages,
        unseen,
        student_tokenizer=own,
        teacher_tokenizer=tokenizer,
    )
    encoded.report(config.alignment.least_share, context.events)
    if encoded.aligned is not None and ranks.leads:
        write_records(draft.data / "rejected.jsonl", encoded.rejected)
    rows, validation = encoded.rows, encoded.validation
    check_there_are_rows(rows, validation)
    chunks = read_records(inputs["ingest"].path("chunks.jsonl"), Chunk)
    sources = {chunk.document: chunk.source for chunk in chunks}
    panel = Panel.of(config, tokenizer, rows, validation, sources)
    lessons = encoded.lessons(tokenizer, context.seed, context.events)
    config, panel, assistants = through_assistants(
        config,
        panel,
        lessons,
        models=draft.data / "models",
        work=draft.work,
        tensorboard=draft.data / "tensorboard",
    )
    digest = refs.digest(refs.parse(config.teacher))
    teacher = open_teacher(config.teacher, config, lessons.taught, context.events)
    start = make_student(
        config,
        teacher,
        lessons,
        begins=uncorrected if config.student.start == "uncorrected" else config.teacher,
        panel=panel,
        digest=digest,
        work=draft.work,
        tensorboard=draft.data / "tensorboard",
    )
    if ranks.leads:
        write_json(draft.data / "surgery.json", fewer.told(start.report) if fewer else start.report)
    student = start.load().to(teacher.device)
    material = prepare(
        config,
        teacher,
        student,
        lessons,
        student_tokenizer=start.tokenizer,
        panel=panel,
        digest=digest,
        work=draft.work,
    )
    if ranks.leads:
        student = start.load() if is_quantised(student) else student
        before = draft.data / "models" / "undistilled"
        save_model(student.to(torch.bfloat16), start.tokenizer, before)
    del student, teacher
    gc.collect()
    trained: dict[str, Trained] = {}
    goals = {DISTILLED: config.objective} | ({COMPARED: FINETUNED} if config.baseline else {})
    for name, goal in goals.items():
        distilled = trained.get(DISTILLED)
        trained[name] = _train_once(
            name,
            goal,
            config,
            start,
            material,
            draft,
            context,
            last_step=distilled.steps if distilled else len(material.plan),
            patience=0 if distilled else config.patience,
            rollouts=config.on_policy.used and not distilled,
        )
    if ranks.leads:
        _write_results(config, assistants | trained, material, encoded, draft)
    ranks.wait()


def _passages(ingest: Artifact, examples: Sequence[Example]) -> list[Chunk]:
    """The chunks that training rows come from; held-out chunks stay unseen."""
    seen = {example.provenance.chunk for example in examples}
    return [c for c in read_records(ingest.path("chunks.jsonl"), Chunk) if c.id in seen]


def _train_once(
    name: str,
    objective: Objective,
    config: DistillConfig,
    start: Start,
    material: Material,
    draft: Draft,
    context: Context,
    *,
    last_step: int,
    patience: int,
    rollouts: bool,
) -> Trained:
    """Train and save one model, or read what came of it if that was done before a kill."""
    mark, ranks = draft.work / f"{name}.json", Ranks.here()
    if ranks.first(lambda: is_finished(mark, draft.data / "models" / name)):
        return Trained(**read_json(mark))
    work = draft.work / name
    student, trained = train_student(
        start.load(),
        material,
        objective,
        config=config,
        seed=context.seed,
        name=name,
        last_step=last_step,
        patience=patience,
        work=work,
        tensorboard=draft.data / "tensorboard" / name,
        events=context.events,
        rollouts=draft.data / "rollouts.jsonl" if rollouts else None,
        keep=draft.data / "adapters" / name if config.keep_adapter and name == DISTILLED else None,
        base=config.student.model or "models/undistilled of the same result",
    )
    ranks.wait()
    if ranks.leads:
        write_json(mark, dataclasses.asdict(trained))
        save_model(student.to(torch.bfloat16), start.tokenizer, draft.data / "models" / name)
        shutil.rmtree(work, ignore_errors=True)  # checkpoints; the mark says: needed no more
    ranks.wait()
    return trained


def _rollouts(config: DistillConfig, draft: Draft) -> dict[str, float]:
    """How many of the student's own answers there were, how long, and how many were cut."""
    if not config.on_policy.used:
        return {}
    return figures(list(read_records(draft.data / "rollouts.jsonl", Rollout)))


def _write_results(
    config: DistillConfig,
    trained: Mapping[str, Trained],
    material: Material,
    encoded: Encoded,
    draft: Draft,
) -> None:
    write_json(draft.data / "history.json", {name: one.history for name, one in trained.items()})
    write_json(
        draft.data / "training.json",
        {
            "rows": len(material.training.rows),
            "row_tokens": sum(len(row.ids) for row in material.training.rows),
            "computed_row_tokens": sum(material.training.sizes.values()),
            "truncated_rows": sum(row.truncated for row in material.training.rows),
            "validation_rows": len(material.validation.rows),
            "precision": str(material.dtype).removeprefix("torch."),
            "layout": "packed" if material.training.packed else "buckets",
            "signal": material.signal_kind,
            "alignment": config.alignment.method,
            "aligned_share": round(encoded.share, 6),
            "rejected_rows": len(encoded.rejected),
            "learning_rate": config.learning_rate,
            "planned_steps": len(material.plan),
            **_rollouts(config, draft),
            "models": {name: one.summary for name, one in trained.items()},
        },
    )
