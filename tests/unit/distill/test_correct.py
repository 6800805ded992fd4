"""The correct stage: off it costs nothing, on it makes the teacher better, or leaves it alone."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from potstill.core.files import digests_of
from potstill.core.stage import Artifact, Context, Draft
from potstill.distill import CORRECT, CorrectConfig, DistillConfig, StudentConfig
from potstill.distill.batches import encode_rows
from potstill.distill.correct import run
from potstill.distill.run import run as distill
from potstill.errors import TrainingError
from potstill.models.corrected import corrected
from potstill.models.load import load_model, load_tokenizer
from potstill.records import Example

Inputs = dict[str, Artifact]
Drafts = Callable[[str], Draft]


def _config(teacher: Path, **changes: Any) -> CorrectConfig:
    settings: dict[str, Any] = {
        "method": "full",
        "teacher": str(teacher),
        "epochs": 4,
        "learning_rate": 3e-3,
        "step_tokens": 200,
        "micro_tokens": 120,
        "sequence_tokens": 120,
        "validations": 3,
        "precision": "fp32",
    }
    return CorrectConfig(**(settings | changes))


def _cross_entropy(model: Any, tokenizer: Any, examples: list[Example], answers: bool) -> float:
    """Plainly, row by row in float64."""
    model = model.double().eval()
    total, count = 0.0, 0
    for row in encode_rows(examples, tokenizer, 120):
        ids = torch.tensor([row.ids])
        with torch.no_grad():
            log_q = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        found = -log_q.gather(1, ids[0, 1:, None])[:, 0]
        found = found[row.answer_start - 1 :] if answers else found
        total, count = total + float(found.sum()), count + len(found)
    return total / count


@pytest.mark.parametrize(("method", "tokens"), [("full", "all"), ("lora", "answer")])
def test_a_corrected_teacher_is_better_on_held_out_rows_as_it_is_saved(
    method: str,
    tokens: str,
    teacher_folder: Path,
    examples: list[Example],
    stage_inputs: Inputs,
    make_draft: Drafts,
    context: Context,
) -> None:
    draft = make_draft("draft")
    rate = 3e-3 if method == "full" else 1e-2
    config = _config(teacher_folder, method=method, tokens=tokens, learning_rate=rate)
    run(config, stage_inputs, draft, context)
    found = json.loads((draft.data / "correction.json").read_text())
    assert found["kept"]
    assert found["loss_after"] < found["loss_before"]
    assert found["kl_to_the_original"] > 0.01
    tokenizer = load_tokenizer(teacher_folder)
    for folder, loss in ((teacher_folder, "loss_before"), (draft.data / "model", "loss_after")):
        plain = _cross_entropy(load_model(folder), tokenizer, examples[8:], tokens == "answer")
        assert found[loss] == pytest.approx(plain, rel=1e-4)
    assert load_tokenizer(draft.data / "model").get_vocab() == tokenizer.get_vocab()
    assert load_model(draft.data / "model").config.num_hidden_layers == 4
    assert CORRECT.counts(draft.data)["parameters"] > 0
    assert {path.name for path in draft.work.iterdir()} == {"correction.json", "tensorboard"}


def test_a_correction_that_does_not_help_keeps_the_original(
    teacher_folder: Path,
    stage_inputs: Inputs,
    make_draft: Drafts,
    context: Context,
    events_of: Callable[[], list[dict[str, Any]]],
) -> None:
    better, draft = make_draft("better"), make_draft("draft")
    run(_config(teacher_folder, epochs=8), stage_inputs, better, context)
    run(_config(better.data / "model", learning_rate=0.5), stage_inputs, draft, context)
    found = json.loads((draft.data / "correction.json").read_text())
    assert not found["kept"]
    assert not (draft.data / "model").exists()
    said = [event["message"] for event in events_of() if event["kind"] == "warning"]
    assert any("the teacher is used as it came" in one for one in said)
    artifact = Artifact("correct", "key", draft.folder, "digest")
    assert corrected(artifact, "as named") == "as named"


def test_off_it_leaves_nothing_and_imports_nothing_heavy(tmp_path: Path) -> None:
    script = f"""
import sys
from pathlib import Path
from potstill.core.stage import Context, Draft
from potstill.distill import CORRECT
config = CORRECT.config()
assert CORRECT.facts(config, Path(".")) == {{}}
draft = Draft(Path({str(tmp_path)!r}) / "draft")
draft.data.mkdir(parents=True)
CORRECT.load()(config, {{}}, draft, None)
assert not list(draft.data.iterdir())
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_distill_learns_from_the_corrected_teacher(
    teacher_folder: Path, stage_inputs: Inputs, make_draft: Drafts, context: Context
) -> None:
    correction = make_draft("corrected")
    run(_config(teacher_folder), stage_inputs, correction, context)
    inputs = stage_inputs | {"correct": Artifact("correct", "key", correction.folder, "digest")}
    draft = make_draft("draft")
    config = DistillConfig(
        teacher=str(teacher_folder),
        student=StudentConfig(drop_layers=1, calibration_tokens=64),
        epochs=0.5,
        step_tokens=200,
        micro_tokens=120,
        sequence_tokens=120,
        precision="fp32",
    )
    distill(config, inputs, draft, context)
    dropped = json.loads((draft.data / "surgery.json").read_text())["dropped"][0]
    kept = [layer for layer in range(4) if layer != dropped]
    teachers = load_model(correction.data / "model").model.layers
    students = load_model(draft.data / "models" / "undistilled").model.layers
    originals = load_model(teacher_folder).model.layers
    for place, layer in enumerate(kept):
        own = students[place].mlp.up_proj.weight
        assert own.equal(teachers[layer].mlp.up_proj.weight)
        assert not own.equal(originals[layer].mlp.up_proj.weight)


def test_without_held_out_rows_it_says_so(
    teacher_folder: Path, stage_inputs: Inputs, make_draft: Drafts, context: Context
) -> None:
    stage_inputs["curate"].path("validation.jsonl").write_text("")
    with pytest.raises(TrainingError, match="0 validation rows"):
        run(_config(teacher_folder), stage_inputs, make_draft("draft"), context)


def test_errors_name_the_fields_of_its_own_section(
    teacher_folder: Path, stage_inputs: Inputs, make_draft: Drafts, context: Context
) -> None:
    config = _config(teacher_folder, sequence_tokens=16)
    with pytest.raises(TrainingError, match=r"longer than correct\.sequence_tokens"):
        run(config, stage_inputs, make_draft("draft"), context)


KILLED = """
import sys
from pathlib import Path
from potstill.core.events import Emitter
from potstill.core.stage import Artifact, Context, Draft
from potstill.distill import CorrectConfig
from potstill.distill.correct import run

here = Path(sys.argv[1])
config = CorrectConfig.model_validate_json(sys.argv[2])
inputs = {"curate": Artifact("curate", "key", here / "curate", "digest")}
run(config, inputs, Draft(here / sys.argv[3]),
    Context(here, here, 7, 1, Emitter(here / f"{sys.argv[3]}.jsonl", "correct")))
"""


def test_a_killed_correction_ends_as_an_undisturbed_one(
    teacher_folder: Path,
    stage_inputs: Inputs,
    make_draft: Drafts,
    context: Context,
    tmp_path: Path,
) -> None:
    config = _config(teacher_folder, epochs=6, checkpoint_minutes=1e-4, patience=0)
    command = [sys.executable, "-c", KILLED, str(tmp_path), config.model_dump_json()]
    calm, disturbed = make_draft("calm"), make_draft("disturbed")
    run(config, stage_inputs, calm, context)
    process = subprocess.Popen([*command, "disturbed"])
    checkpoints = disturbed.work / "training"
    while process.poll() is None and len(list(checkpoints.glob("checkpoint-*/complete.json"))) < 1:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    run(config, stage_inputs, disturbed, context)
    assert digests_of(calm.data) == digests_of(disturbed.data)
    assert math.isfinite(json.loads((calm.data / "correction.json").read_text())["loss_after"])
