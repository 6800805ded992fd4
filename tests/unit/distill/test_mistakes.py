"""Numbers that are not finite, and want of memory: one clear error each, the checkpoint kept."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from potstill.distill import Distiller, checkpoints
from potstill.distill.config import DistillConfig
from potstill.distill.trainer import DistillTrainer
from potstill.errors import MissingExtraError, TrainingError
from potstill.models.load import load_model, load_tokenizer
from potstill.models.surgery import drop_layers

Train = Callable[..., Any]


@pytest.fixture
def train(teacher_folder: Path, tmp_path: Path, litre_rows: list[dict[str, str]]) -> Train:
    """train(spoil_teacher, spoil_student, **settings) with models that were changed before."""

    def run(
        teacher_change: Callable[[Any], Any] = lambda model: None,
        student_change: Callable[[Any], Any] = lambda model: None,
        name: str = "out",
        **settings: Any,
    ) -> Any:
        teacher = load_model(teacher_folder)
        student = drop_layers(copy.deepcopy(teacher), [1])
        for model, change in ((teacher, teacher_change), (student, student_change)):
            with torch.no_grad():
                change(model)
        known = {"epochs": 4, "step_tokens": 100, "precision": "fp32", "signal": "live"}
        distiller = Distiller(
            teacher,
            student,
            tokenizer=load_tokenizer(teacher_folder),
            output=tmp_path / name,
            **(known | settings),
        )
        return distiller.train(litre_rows)

    return run


def spoil(model: Any) -> None:
    model.model.layers[0].mlp.down_proj.weight[0, 0] = float("nan")


@pytest.mark.parametrize("signal", ["live", "hidden_bf16", "top_k"])
def test_a_teacher_with_bad_numbers_is_named_before_training(train: Train, signal: str) -> None:
    with pytest.raises(TrainingError, match=r"[Tt]eacher.* row.* not( all)? finite"):
        train(teacher_change=spoil, signal=signal, signal_count=8)


def test_a_student_with_bad_numbers_is_named_before_training(train: Train) -> None:
    with pytest.raises(TrainingError, match=r"student's states of rows .*row-"):
        train(student_change=spoil)


@pytest.mark.parametrize(
    ("side", "words"),
    [
        ("teacher", r"teacher's distribution is not a finite number at step 6, rows row-\d"),
        ("student", r"loss is not a finite number at step 6, rows row-\d.*learning_rate"),
    ],
)
def test_numbers_that_turn_bad_stop_the_training_and_the_checkpoint_stays(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: str, words: str
) -> None:
    real = DistillTrainer.training_step

    def spoiled(self: Any, model: Any, inputs: Any, *more: Any) -> Any:
        if self.state.global_step == 5:
            with torch.no_grad():
                spoil(self.loss.signal.model if side == "teacher" else self.model)
        return real(self, model, inputs, *more)

    monkeypatch.setattr(DistillTrainer, "training_step", spoiled)
    with pytest.raises(TrainingError, match=words):
        train(validations=4)
    kept = checkpoints.newest(tmp_path / "out" / "work" / "training")
    assert kept is not None
    assert 0 < checkpoints.step_of(kept) <= 5
    monkeypatch.undo()
    resumed = train(validations=4)  # goes on from it, and ends as if nothing had happened
    assert resumed.trained == train(name="calm", validations=4).trained


@pytest.mark.parametrize(
    ("settings", "way"),
    [
        ({"micro_tokens": 200, "sequence_tokens": 60}, r"Set distill.micro_tokens to \d+;"),
        ({"micro_tokens": 60, "sequence_tokens": 60}, "Set distill.gradient_checkpointing: true"),
        (
            {"micro_tokens": 60, "sequence_tokens": 60, "gradient_checkpointing": True},
            "Set distill.adapter: lora",
        ),
        (
            {
                "micro_tokens": 60,
                "sequence_tokens": 60,
                "attention": {"weight": 1.0},
                "adapter": "lora",
            },
            "Use a smaller student",
        ),
    ],
)
@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"
        ),
    ],
    ids=["python", "gpu", "cpu"],
)
@pytest.mark.parametrize("where", ["batch", "optimizer", "validation"])
def test_want_of_memory_says_what_to_lower_and_by_how_much(
    train: Train,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    way: str,
    error: Exception,
    where: str,
) -> None:
    def starve(*args: Any, **more: Any) -> Any:
        raise error

    if where == "batch":
        monkeypatch.setattr(DistillTrainer, "_part", starve)
    elif where == "optimizer":
        monkeypatch.setattr(torch.optim.AdamW, "step", starve)
    else:
        monkeypatch.setattr(DistillTrainer, "held_out", starve)
        settings = settings | {"validations": 1}
    if where == "validation" and "micro_tokens to" in way:
        way = "Set distill"  # it may come before the first step, with no batch to halve
    with pytest.raises(TrainingError, match=rf"needs more memory than there is\. {way}"):
        train(step_tokens=200, term_gradients=False, share_beginnings=False, **settings)


def test_a_live_teacher_is_asked_for_by_terms_that_look_into_its_layers() -> None:
    config = DistillConfig(teacher="t", hidden={"mse_weight": 1.0})
    assert config.needs_live_teacher
    with pytest.raises(ValueError, match="use live"):
        DistillConfig(teacher="t", hidden={"mse_weight": 1.0}, signal="hidden_int8")


def test_what_is_not_installed_is_named_with_the_way_to_get_it(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"trackers: mlflow .*: pip install mlflow"):
        train(trackers=("mlflow",))
    monkeypatch.undo()
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(TrainingError, match=r"no-such-compiler is not found.*compile: false"):
        train(name="compiled", compile=True)


def test_paged_moments_need_a_gpu(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(TrainingError, match=r"needs an NVIDIA GPU.*optimizer: auto"):
        train(optimizer="paged_adamw")
