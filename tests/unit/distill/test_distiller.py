"""The trainer for one's own rows: the guide's example, the forms of rows, going on, refusals."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from potstill.distill import Distiller
from potstill.distill import distiller as module
from potstill.distill.trainer import DistillTrainer
from potstill.errors import InputError, StoreError, TrainingError, UsageError
from potstill.models.load import load_model, load_tokenizer
from potstill.models.surgery import drop_layers

GUIDE = Path(__file__).parents[3] / "docs" / "guides" / "your-own-rows.md"
FAST = {"epochs": 2, "precision": "fp32", "validations": 2, "learning_rate": 3e-3}
ROWS = [
    {"question": f"{ask} litres?", "context": "Unit 7 holds 1250 litres.", "answer": "1250"}
    for ask in ("How many", "What", "Which", "Of what", "How", "Why")
]


def test_the_guides_examples_run(
    teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(teacher_folder, tmp_path / "teacher")
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert len(examples) == 2
    assert len([line for line in examples[0].splitlines() if line.strip()]) <= 10
    names: dict[str, Any] = {}
    for example in examples:
        exec(compile(example, str(GUIDE), "exec"), names)
    assert names["distilled"].history["validation"]
    assert load_model(tmp_path / "student" / "model").config.num_hidden_layers < 4
    assert load_tokenizer(tmp_path / "student" / "model").eos_token
    assert sorted(path.name for path in (tmp_path / "student").iterdir()) == [
        "events.jsonl",
        "key.json",
        "model",
        "surgery.json",
        "tensorboard",
        "trained.json",
    ]


def test_loaded_models_and_all_forms_of_rows(teacher_folder: Path, tmp_path: Path) -> None:
    teacher, tokenizer = load_model(teacher_folder), load_tokenizer(teacher_folder)
    student = drop_layers(load_model(teacher_folder), [2])
    forms = [
        {"messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "No"}]},
        {"prompt": "How many?", "completion": "1250 litres"},
        *ROWS,
    ]
    run = Distiller(teacher, student, tokenizer=tokenizer, output=tmp_path / "a", **FAST)
    distilled = run.train(forms, [ROWS[0]])
    first, last = (distilled.history["validation"][place]["kl"] for place in (0, -1))
    assert last < first
    assert distilled.model is not None
    assert distilled.trained.steps == len(distilled.history["steps"])


def test_a_training_that_was_broken_off_goes_on_and_a_finished_one_is_opened(
    teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {**FAST, "epochs": 4, "step_tokens": 60, "signal": "hidden_bf16"}
    whole = Distiller(teacher_folder, output=tmp_path / "whole", **settings).train(ROWS)
    real, seen = DistillTrainer.training_step, 0

    def break_off(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == whole.trained.steps - 1:
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    broken = Distiller(teacher_folder, output=tmp_path / "broken", **settings)
    monkeypatch.setattr(DistillTrainer, "training_step", break_off)
    with pytest.raises(KeyboardInterrupt):
        broken.train(ROWS)
    monkeypatch.undo()
    resumed = broken.train(ROWS)
    assert resumed.trained == whole.trained
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
    monkeypatch.setattr(module, "prepare", None)  # nothing is computed again
    assert broken.train(ROWS).trained == whole.trained
    with pytest.raises(StoreError, match=r"another training: input\.rows, input\.validation"):
        broken.train(ROWS[:3])
    with pytest.raises(StoreError, match=r"another training: config\.epochs differ"):
        Distiller(teacher_folder, output=tmp_path / "broken", **{**settings, "epochs": 5}).train(
            ROWS
        )
    # What cannot change the result may change.
    again = Distiller(
        teacher_folder, output=tmp_path / "broken", checkpoint_minutes=9.0, **settings
    )
    assert again.train(ROWS).trained == whole.trained


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"divergance": "jsd"}, "divergance: Extra inputs"),
        ({"temperature": -1}, "temperature: Input should be greater"),
        ({"passages": True}, "passages are chunks of documents"),
        ({"signal": "sampled", "divergence": "reverse_kl"}, "unbiased for divergence: forward_kl"),
    ],
)
def test_a_setting_that_does_not_exist_or_fit_is_refused(
    teacher_folder: Path, tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        Distiller(teacher_folder, output=tmp_path, **settings)


def test_mistakes_are_one_clear_error(teacher_folder: Path, tmp_path: Path) -> None:
    model = load_model(teacher_folder)
    with pytest.raises(UsageError, match="needs its tokenizer"):
        Distiller(model, output=tmp_path)
    tokenizer = load_tokenizer(teacher_folder)
    with pytest.raises(UsageError, match="same object"):
        Distiller(model, model, tokenizer=tokenizer, output=tmp_path)
    with pytest.raises(UsageError, match="by a reference alone"):
        Distiller(model, tokenizer=tokenizer, output=tmp_path)
    run = Distiller(teacher_folder, output=tmp_path / "a")
    with pytest.raises(InputError, match="Row 1 is no conversation: it has text"):
        run.train([ROWS[0], {"text": "alone"}])
    with pytest.raises(TrainingError, match="0 training rows"):
        run.train([ROWS[0]])
    with pytest.raises(TrainingError, match="empty answer"):
        run.train([*ROWS, {"prompt": "What?", "completion": ""}], ROWS[:1])


def test_a_loaded_teacher_may_be_trained_with_again(teacher_folder: Path, tmp_path: Path) -> None:
    teacher, tokenizer = load_model(teacher_folder), load_tokenizer(teacher_folder)
    student = drop_layers(load_model(teacher_folder, torch.bfloat16), [2])
    settings = {**FAST, "precision": "bf16", "epochs": 1}
    run = Distiller(teacher, student, tokenizer=tokenizer, output=tmp_path / "a", **settings)
    assert run.train(ROWS).trained == run.train(ROWS).trained


def test_the_cut_and_the_held_out_rows_follow_the_settings(
    teacher_folder: Path, tmp_path: Path
) -> None:
    cut = {"drop_layers": 2, "method": "influence", "calibration_tokens": 64}
    run = Distiller(teacher_folder, cut, output=tmp_path / "a", validation_tokens=64, **FAST)
    distilled = run.train(ROWS, ROWS * 20)
    assert distilled.model.config.num_hidden_layers == 2
    events = (tmp_path / "a" / "events.jsonl").read_text()
    held_out = [line for line in events.splitlines() if "teacher on validation" in line]
    assert '"total": 2' not in held_out[-1]
    assert int(re.search(r'"total": (\d+)', held_out[-1])[1]) <= 64  # type: ignore[index]


@pytest.mark.parametrize("change", ["template", "vocabulary"])
def test_a_student_with_another_tokenizer_or_template_is_refused(
    teacher_folder: Path, tmp_path: Path, change: str
) -> None:
    folder = tmp_path / "student"
    drop_layers(load_model(teacher_folder), [1]).save_pretrained(folder)
    tokenizer = load_tokenizer(teacher_folder)
    if change == "template":
        tokenizer.chat_template = "{{ messages[0]['content'] }}"
    else:
        tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(folder)
    run = Distiller(teacher_folder, folder, output=tmp_path / "out", **FAST)
    words = "chat_template" if change == "template" else "different vocabularies"
    with pytest.raises(TrainingError, match=words):
        run.train(ROWS)
    loaded = load_model(folder)
    run = Distiller(
        teacher_folder, loaded, student_tokenizer=tokenizer, output=tmp_path / "b", **FAST
    )
    with pytest.raises(TrainingError, match=words):
        run.train(ROWS)


@pytest.mark.parametrize(
    "row",
    [
        "text alone",
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None}]},
        {"question": 5, "answer": "6"},
        {"question": "Why?"},
        {},
    ],
)
def test_a_row_of_another_form_is_one_clear_error(
    teacher_folder: Path, tmp_path: Path, row: Any
) -> None:
    run = Distiller(teacher_folder, output=tmp_path, **FAST)
    with pytest.raises(InputError, match="Row 1 is no conversation: it has"):
        run.train([ROWS[0], row])


def test_what_several_processes_would_ruin_is_refused(
    teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingError, match="one of several processes"):
        Distiller(teacher_folder, output=tmp_path, **FAST).train(ROWS)


def test_a_student_that_is_its_teacher_has_nothing_to_learn(
    teacher_folder: Path, tmp_path: Path
) -> None:
    run = Distiller(
        teacher_folder, load_model(teacher_folder), output=tmp_path / "a", ce_weight=0.0, **FAST
    )
    with pytest.raises(TrainingError, match="says what the teacher says, and nothing moves it"):
        run.train(ROWS)
    moved = Distiller(teacher_folder, load_model(teacher_folder), output=tmp_path / "b", **FAST)
    assert moved.train(ROWS).history["steps"][-1]["kd"] > 0


def test_the_name_costs_no_torch() -> None:
    code = "import sys, potstill.distill as d; d.Objective(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
