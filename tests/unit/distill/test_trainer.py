"""The reducer, the schedule, early stopping, checkpoints and resume."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.training_args import OptimizerNames

from potstill.core.events import Emitter
from potstill.distill import checkpoints
from potstill.distill.attention import use
from potstill.distill.batches import Row, RowSet, active_counts, encode_rows
from potstill.distill.config import DistillConfig
from potstill.distill.losses import forward_kl
from potstill.distill.material import Material, pick_dtype, pick_optimizer
from potstill.distill.objective import Objective
from potstill.distill.outcome import Trained
from potstill.distill.packing import plan_steps
from potstill.distill.schedules import rate_factor
from potstill.distill.signals import LiveTeacher
from potstill.distill.steps import Step, Steps
from potstill.distill.train import train_student
from potstill.distill.trainer import DistillTrainer
from potstill.errors import TrainingError
from potstill.models.surgery import drop_layers
from potstill.records import Example

OBJECTIVE = Objective(kd_weight=1.0, kd_tokens="all", ce_weight=0.3, ce_tokens="answer")
Train = Callable[..., tuple[Any, Trained]]


@pytest.fixture
def rows(tokenizer: Any, examples: list[Example]) -> list[Row]:
    return encode_rows(examples, tokenizer, 500)[:8]


def step_of(data: RowSet, micros: Sequence[Sequence[int]], objective: Objective) -> Step:
    """A step of rows that share nothing, cut into these micro-batches."""
    batches = [data.collate([(row,) for row in micro], objective.active, 0) for micro in micros]
    rows = [data.rows[row] for micro in micros for row in micro]
    return Step(tuple(batches), active_counts(rows, objective.active), data)


def _trainer(
    student: Any,
    teacher: Any,
    rows: list[Row],
    folder: Path,
    objective: Objective,
    packed: bool = False,
) -> DistillTrainer:
    from transformers import TrainingArguments

    signal = LiveTeacher(teacher, torch.float32)
    data = RowSet.apart(rows, packed)
    if packed:
        use(teacher)
        use(student)
    plan = [[list(data.families)]]
    return DistillTrainer(
        student,
        signal,
        signal,
        objective,
        Steps(data, plan, objective.active, 0),
        data,
        vocabulary=signal.output.words,
        dtype=torch.float32,
        config=DistillConfig(teacher="t"),
        arguments=TrainingArguments(
            str(folder), max_steps=len(plan), report_to="none", use_cpu=True, disable_tqdm=True
        ),
        callbacks=[],
    )


def _gradients(trainer: DistillTrainer, micros: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    trainer.model.zero_grad()
    step = step_of(trainer.steps.data, micros, trainer.objective)
    trainer.training_step(trainer.model, step)
    return {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}


EVERY_TERM = Objective(
    kd_weight=0.8,
    ce_weight=0.3,
    divergence={"forward_kl": 0.6, "jsd": 0.4},
    temperature=2.0,
    hidden={"mse_weight": 0.05, "cosine_weight": 0.5, "tokens": "answer"},
    attention={"weight": 0.7, "layers": "last-2"},
)


@pytest.mark.parametrize(
    ("objective", "packed"), [(OBJECTIVE, False), (OBJECTIVE, True), (EVERY_TERM, True)]
)
def test_the_gradient_does_not_depend_on_how_the_step_is_split(
    teacher: Any, rows: list[Row], tmp_path: Path, objective: Objective, packed: bool
) -> None:
    student = drop_layers(copy.deepcopy(teacher), [1]).requires_grad_(True)
    trainer = _trainer(student, teacher, rows, tmp_path, objective, packed)
    whole = _gradients(trainer, [list(range(8))])
    assert whole.keys() == dict(student.named_parameters()).keys()
    for size in (1, 2, 4):
        split = [list(range(start, start + size)) for start in range(0, 8, size)]
        for name, gradient in _gradients(trainer, split).items():
            error = (gradient - whole[name]).norm() / whole[name].norm()
            assert error < 1e-5, f"{name} differs by {error:.1e} with micro-batches of {size}"


def test_packed_rows_give_the_gradient_of_padded_ones(
    teacher: Any, rows: list[Row], tmp_path: Path
) -> None:
    found = []
    for packed in (False, True):
        mine = copy.deepcopy(teacher)
        student = drop_layers(copy.deepcopy(teacher), [1]).requires_grad_(True)
        trainer = _trainer(student, mine, rows, tmp_path, OBJECTIVE, packed)
        found.append((_gradients(trainer, [list(range(8))]), trainer.held_out()))
    for name, gradient in found[0][0].items():
        error = (gradient - found[1][0][name]).norm() / gradient.norm()
        assert error < 1e-5, f"{name} differs by {error:.1e}"
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-5)


def test_every_term_has_a_value_and_a_gradient_of_its_own(
    teacher: Any, rows: list[Row], tmp_path: Path
) -> None:
    student = drop_layers(copy.deepcopy(teacher), [1]).requires_grad_(True)
    trainer = _trainer(student, teacher, rows, tmp_path, EVERY_TERM, packed=True)
    loss = float(trainer.training_step(student, trainer.steps[0]))
    terms = {"kd": 0.8, "ce": 0.3, "hidden_mse": 0.05, "hidden_cosine": 0.5, "attention": 0.7}
    assert loss == pytest.approx(sum(w * trainer.figures[name] for name, w in terms.items()))
    assert all(trainer.figures[f"grad_norm_{name}"] > 0 for name in terms)
    assert 0 <= trainer.figures["agreement"] <= 1
    assert 0 < trainer.figures["student_entropy"] < 10
    assert 0 < trainer.figures["teacher_entropy"] < 10


def test_weights_follow_their_schedules(teacher: Any, rows: list[Row], tmp_path: Path) -> None:
    student = drop_layers(copy.deepcopy(teacher), [1]).requires_grad_(True)
    fading = Objective(kd_weight={"start": 1.0, "end": 0.0}, ce_weight=1.0)
    trainer = _trainer(student, teacher, rows, tmp_path, fading)
    trainer.steps.plan = [trainer.steps.plan[0]] * 3
    losses = []
    for step in range(3):
        trainer.state.global_step = step
        losses.append(float(trainer.training_step(student, trainer.steps[0])))
    figures = trainer.figures
    assert "kd" not in figures  # its weight is 0 by now
    assert losses[2] == pytest.approx(figures["ce"])
    assert losses[0] - losses[1] == pytest.approx(losses[1] - losses[2], rel=1e-4)


def test_the_loss_is_the_mean_over_each_terms_active_tokens(
    teacher: Any, rows: list[Row], tmp_path: Path
) -> None:
    student = drop_layers(copy.deepcopy(teacher), [1]).requires_grad_(True)
    trainer = _trainer(student, teacher, rows, tmp_path, OBJECTIVE)
    loss = trainer.training_step(student, step_of(trainer.steps.data, [[0, 1, 2], [3]], OBJECTIVE))
    kl = ce = 0.0
    predictions = answers = 0
    for row in rows[:4]:  # one by one, without padding, from the models' own logits
        ids = torch.tensor([row.ids])
        with torch.no_grad():
            logits, truth = (model(ids).logits[0, :-1].double() for model in (student, teacher))
        kl += float(forward_kl(logits, truth))
        surprise = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
        ce += float(surprise[row.answer_start - 1 :].sum())
        predictions += row.predictions
        answers += len(row.ids) - row.answer_start
    assert float(loss) == pytest.approx(kl / predictions + 0.3 * ce / answers, rel=1e-5)


def test_held_out_figures_mean_the_same_for_every_objective(
    teacher: Any, rows: list[Row], tmp_path: Path
) -> None:
    student = drop_layers(copy.deepcopy(teacher), [1]).requires_grad_(True)
    figures = [
        _trainer(student, teacher, rows, tmp_path, objective).held_out()
        for objective in (
            OBJECTIVE,
            Objective(kd_weight=0.0, ce_weight=1.0, ce_tokens="all"),
            Objective(kd_tokens="answer", ce_weight=0.0, temperature=2.0, divergence="jsd"),
        )
    ]
    for name in ("kl", "kl_answer", "ce", "ce_answer", "agreement"):
        assert figures[0][name] == pytest.approx(figures[1][name]) == figures[2][name]
    assert figures[0]["loss"] == pytest.approx(figures[0]["kl"] + 0.3 * figures[0]["ce_answer"])
    assert figures[1]["loss"] == pytest.approx(figures[1]["ce"])
    assert 0 < figures[2]["loss"] < 4 * 0.7


@pytest.fixture
def train(teacher: Any, rows: list[Row], tmp_path: Path) -> Train:
    """train(folder, **config) -> what train_student returns."""

    def run(
        folder: str, objective: Objective = OBJECTIVE, packed: bool = False, **changes: Any
    ) -> tuple[Any, Trained]:
        settings: dict[str, Any] = {"teacher": "t", "learning_rate": 3e-3, "validations": 4}
        config = DistillConfig(**(settings | {"patience": 0} | changes))
        data = RowSet.apart(rows[:6], packed)
        plan = plan_steps(
            data, step_tokens=150, micro_tokens=100, epochs=8, max_tokens=None, seed=3
        )
        mine = copy.deepcopy(teacher)
        if packed:
            use(mine)
        signal = LiveTeacher(mine, torch.float32)
        material = Material(
            None,
            data,
            RowSet.apart(rows[6:], packed),
            plan,
            signal.output.words,
            torch.float32,
            signal,
            signal,
        )
        return train_student(
            drop_layers(copy.deepcopy(teacher), [1]),
            material,
            objective,
            config=config,
            seed=1,
            name="distilled",
            last_step=len(plan),
            patience=config.patience,
            work=tmp_path / folder,
            tensorboard=tmp_path / f"{folder}-board",
            events=Emitter(None),
        )

    return run


def _assert_same(one: tuple[Any, Trained], other: tuple[Any, Trained]) -> None:
    assert one[1] == other[1]
    for name, tensor in one[0].state_dict().items():
        assert torch.equal(tensor, other[0].state_dict()[name]), name


def _newest(folder: Path) -> Path:
    found = checkpoints.newest(folder)
    assert found is not None
    return found


PROJECTED = EVERY_TERM.model_copy(
    update={"hidden": EVERY_TERM.hidden.model_copy(update={"projection": "always"})}
)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"adapter": "lora", "lora": {"rank": 4, "dropout": 0.2}},
        pytest.param({"adapter": "dora", "lora": {"rank": 4}}, marks=pytest.mark.whole),
        pytest.param(
            {"adapter": "qlora", "lora": {"rank": 4}, "packed": True}, marks=pytest.mark.whole
        ),
        pytest.param({"objective": PROJECTED, "packed": True}, marks=pytest.mark.whole),
        pytest.param({"gradient_checkpointing": True}, marks=pytest.mark.whole),
    ],
    ids=["full", "lora", "dora", "qlora", "every term, projected", "checkpointed"],
)
def test_after_a_break_curve_and_weights_equal_the_undisturbed_run(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    whole = train("whole", **settings)
    steps = DistillTrainer.training_step
    seen = 0

    def break_off(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == whole[1].steps // 2 + 2:
            raise KeyboardInterrupt
        return steps(self, *args, **kwargs)

    monkeypatch.setattr(DistillTrainer, "training_step", break_off)
    with pytest.raises(KeyboardInterrupt):
        train("broken", **settings)
    monkeypatch.undo()
    # As a kill in the middle of a checkpoint leaves it: no mark, a file cut short.
    torn = tmp_path / "broken" / "checkpoint-900"
    torn.mkdir()
    (torn / "optimizer.pt").write_bytes(b"half")
    resumed = train("broken", **settings)
    assert not torn.exists()
    _assert_same(whole, resumed)


def test_a_checkpoint_whose_file_was_cut_short_is_not_resumed_from(
    train: Train, tmp_path: Path
) -> None:
    train("run")
    folder = tmp_path / "run"
    last = _newest(folder)
    with (last / "optimizer.pt").open("r+b") as file:
        file.truncate(100)
    assert not checkpoints.is_complete(last)
    again = checkpoints.newest(folder)
    assert again != last
    assert not last.exists()


def test_a_damaged_checkpoint_of_the_right_size_is_one_clear_error(
    train: Train, tmp_path: Path
) -> None:
    train("run")
    last = _newest(tmp_path / "run")
    weights = last / "model.safetensors"
    weights.write_bytes(b"\xff" * weights.stat().st_size)
    with pytest.raises(TrainingError, match="cannot be gone on from"):
        train("run")


def test_only_the_best_and_the_newest_checkpoint_are_kept(train: Train, tmp_path: Path) -> None:
    _, trained = train("run")
    kept = {int(path.name.split("-")[1]) for path in (tmp_path / "run").glob("checkpoint-*")}
    assert kept == {trained.best_step, trained.steps}


def test_training_stops_early_and_returns_the_best_weights(train: Train, tmp_path: Path) -> None:
    # Cross-entropy on answers alone, far too fast: the held-out loss soon rises.
    objective = Objective(kd_weight=0.0, ce_weight=1.0)
    settings = {"patience": 2, "learning_rate": 0.3, "validations": 20, "schedule": "wsd"}
    student, trained = train("run", objective, **settings)
    losses = {row["step"]: row["loss"] for row in trained.history["validation"]}
    del losses[0]
    assert trained.stopped_early
    assert trained.best_step == min(losses, key=lambda step: losses[step])
    assert trained.best_step < trained.steps
    # Killed after it stopped and before the result was kept: the same again, at once.
    _assert_same((student, trained), train("run", objective, **settings))


def test_the_state_of_a_folder_that_was_moved_still_leads_to_the_best_weights(
    train: Train, tmp_path: Path
) -> None:
    student, trained = train("run")
    (tmp_path / "run").rename(tmp_path / "moved")
    state = _newest(tmp_path / "moved") / "trainer_state.json"
    assert "run/checkpoint" in json.loads(state.read_text())["best_model_checkpoint"]
    _assert_same((student, trained), train("moved"))


def test_the_embedding_of_the_padding_token_learns_too(train: Train, teacher: Any) -> None:
    padding = teacher.config.pad_token_id
    assert teacher.get_input_embeddings().padding_idx == padding
    student, _ = train("run")
    assert student.get_input_embeddings().padding_idx is None


def test_learning_rates_warm_up_and_decay_and_are_never_zero() -> None:
    for schedule in ("cosine", "wsd"):
        rates = [rate_factor(step, 40, 4, schedule) for step in range(40)]
        assert min(rates) > 0
        assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
        assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rate_factor(20, 40, 4, "wsd") == 1.0
    assert rate_factor(39, 40, 4, "wsd") == pytest.approx(1 / 8)
    assert rate_factor(22, 40, 4, "cosine") == pytest.approx(0.5)


def test_precision_is_what_the_recipe_says() -> None:
    assert pick_dtype("fp32") == torch.float32
    assert pick_dtype("bf16") == torch.bfloat16
    assert pick_dtype("auto") in (torch.float32, torch.bfloat16)


@pytest.mark.parametrize(("cuda", "adapter", "optimizer", "wanted"), [
    (True, "qlora", "auto", "paged_adamw_32bit"),
    (True, "lora", "auto", "adamw_torch_fused"),
    (False, "qlora", "auto", "adamw_torch_fused"),
    (True, "qlora", "adamw", "adamw_torch_fused"),
    (True, "none", "paged_adamw", "paged_adamw_32bit"),
])  # fmt: skip
def test_the_optimizer_fits_the_machine(
    cuda: bool, adapter: Any, optimizer: Any, wanted: str
) -> None:
    config = DistillConfig(teacher="t", adapter=adapter, optimizer=optimizer)
    assert pick_optimizer(config, cuda=cuda) == wanted == OptimizerNames(wanted).value
