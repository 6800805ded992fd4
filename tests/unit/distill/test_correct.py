"""The correct stage: off it costs nothing, on it makes the teacher better, or leaves it alone."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from potstill.core.files import digests_of
from potstill.core.stage import Artifact, Draft
from potstill.distill import CORRECT, CorrectConfig, DistillConfig, StudentConfig
from potstill.distill.batches import encode_rows
from potstill.errors import TrainingError
from potstill.models.corrected import corrected
from potstill.models.load import load_model, load_tokenizer
from potstill.records import Example

Inputs = dict[str, Artifact]
Corrections = Callable[..., CorrectConfig]
Run = Callable[..., Draft]


@pytest.fixture
def correction_of(teacher_folder: Path, small: Callable[..., dict[str, Any]]) -> Corrections:
    """correction_of(**changes) -> the config of a small correction of `teacher_folder`."""
    settings = partial(
        small,
        method="full",
        teacher=str(teacher_folder),
        epochs=4,
        learning_rate=3e-3,
        validations=3,
    )
    return lambda **changes: CorrectConfig(**settings(**changes))


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
    correction_of: Corrections,
    run_stage: Run,
    teacher_folder: Path,
    examples: list[Example],
) -> None:
    rate = 3e-3 if method == "full" else 1e-2
    draft = run_stage(correction_of(method=method, tokens=tokens, learning_rate=rate))
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
    correction_of: Corrections, run_stage: Run, events_of: Callable[[], list[dict[str, Any]]]
) -> None:
    better = run_stage(correction_of(epochs=8), "better")
    draft = run_stage(correction_of(teacher=str(better.data / "model"), learning_rate=0.5))
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
    correction_of: Corrections,
    config_of: Callable[..., DistillConfig],
    run_stage: Run,
    teacher_folder: Path,
    stage_inputs: Inputs,
) -> None:
    correction = run_stage(correction_of(), "corrected")
    inputs = stage_inputs | {"correct": Artifact("correct", "key", correction.folder, "digest")}
    student = StudentConfig(drop_layers=1, calibration_tokens=64)
    draft = run_stage(config_of(student=student, epochs=0.5, validations=6), inputs=inputs)
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
    correction_of: Corrections, run_stage: Run, stage_inputs: Inputs
) -> None:
    stage_inputs["curate"].path("validation.jsonl").write_text("")
    with pytest.raises(TrainingError, match="0 validation rows"):
        run_stage(correction_of())


def test_errors_name_the_fields_of_its_own_section(
    correction_of: Corrections, run_stage: Run
) -> None:
    with pytest.raises(TrainingError, match=r"longer than correct\.sequence_tokens"):
        run_stage(correction_of(sequence_tokens=16))


@pytest.mark.whole
def test_a_killed_correction_ends_as_an_undisturbed_one(
    correction_of: Corrections,
    run_stage: Run,
    kill_stage: Callable[..., None],
    make_draft: Callable[[str], Draft],
) -> None:
    config = correction_of(epochs=6, checkpoint_minutes=1e-4, patience=0)
    calm, disturbed = run_stage(config, "calm"), make_draft("disturbed")
    kill_stage(config, disturbed, "training")
    run_stage(config, "disturbed")
    assert digests_of(calm.data) == digests_of(disturbed.data)
    assert math.isfinite(json.loads((calm.data / "correction.json").read_text())["loss_after"])
