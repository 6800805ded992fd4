"""Where a student comes from: cut to a size along any axis, in steps, or a pretrained model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from potstill.core.events import Emitter
from potstill.core.files import digests_of
from potstill.core.stage import Draft
from potstill.distill import DistillConfig, Distiller, StudentConfig
from potstill.distill.lessons import Lessons
from potstill.distill.plan import estimate, facts
from potstill.distill.signals import LiveTeacher
from potstill.distill.stages_of_cut import shortened
from potstill.distill.student import Start, make_student
from potstill.errors import ModelError, TrainingError, UsageError
from potstill.models import likeness
from potstill.models.importance import shape_of
from potstill.models.load import load_model, load_tokenizer
from potstill.models.refit import refit
from potstill.models.shape import FAMILIES
from potstill.models.surgery import drop_layers, parameters_of

Configs = Callable[..., DistillConfig]
SMALL: dict[str, Any] = {"calibration_tokens": 64, "fit_tokens": 256, "candidates": 2}


@pytest.fixture
def config_of(config_of: Configs) -> Configs:
    # A random teacher disagrees with the rows.
    return partial(config_of, learning_rate=5e-4, ce_weight=0.01)


@pytest.fixture
def start(
    config_of: Configs,
    teacher_folder: Path,
    teacher: Any,
    tokenizer: Any,
    rows: list[Any],
    examples: list[Any],
    tmp_path: Path,
) -> Callable[..., Start]:
    """start(student settings, name="work") -> what `make_student` gives."""

    def make(student: dict[str, Any], name: str = "work") -> Start:
        work = tmp_path / name
        work.mkdir(exist_ok=True)
        events = Emitter(tmp_path / "events.jsonl", "distill")
        return make_student(
            config_of(student=student),
            LiveTeacher(teacher, torch.float32),
            Lessons(tokenizer, rows[:8], rows[8:], examples, 3, events),
            begins=str(teacher_folder),
            digest="t",
            work=work,
            tensorboard=tmp_path / "board",
        )

    return make


@pytest.mark.parametrize(
    ("axes", "size"),
    [
        ("depth", {"parameters_ratio": 0.7}),
        ("width", {"parameters_ratio": 0.7}),
        ("both", {"parameters_ratio": 0.6}),
        ("both", {"parameters": 30_000}),
        ("both", {"memory": 60_000}),
        ("both", {"speed": 1.6}),
        ("depth", {"speed": 1.5}),
    ],
    ids=str,
)
def test_the_student_is_as_small_as_it_was_asked_to_be(
    start: Callable[..., Start], teacher: Any, axes: str, size: dict[str, float]
) -> None:
    made = start({"axes": axes, **size, **SMALL})
    student, whole = made.load(), shape_of(teacher)
    shape = shape_of(student)
    limits = {
        "parameters_ratio": lambda asked: shape.parameters <= asked * whole.parameters,
        "parameters": lambda asked: shape.parameters <= asked,
        "memory": lambda asked: 2 * shape.parameters <= asked,
        "speed": lambda asked: shape.read_parameters * asked <= whole.read_parameters,
    }
    ((name, asked),) = size.items()
    assert limits[name](asked)
    assert parameters_of(student) == shape.parameters == made.report["parameters"]["student"]
    assert (shape.layers == whole.layers) or axes != "width"
    assert (shape.hidden == whole.hidden) or axes != "depth"
    assert made.report["kl"] == min(one["kl"] for one in made.report["tried"])
    assert made.report["kl"] <= made.report["kl_before_fit"]
    sizes = {name: size for name, size in shape.sizes().items() if name != "parameters"}
    assert {name: made.report[name] for name in sizes} == sizes


def test_the_student_that_lies_ready_is_the_one_that_was_measured_and_is_made_once(
    start: Callable[..., Start], teacher: Any, rows: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"axes": "both", "parameters_ratio": 0.6, **SMALL, "calibration_tokens": 400}
    made = start(settings)
    held_out = [torch.tensor([row.ids]) for row in rows[8:]]
    assert sum(ids.numel() for ids in held_out) <= 400
    found = likeness.kl(teacher, made.load(), held_out)
    assert found == pytest.approx(made.report["kl"], abs=1e-4)
    again = start(settings, "another")
    assert digests_of(Path(made.source)) == digests_of(Path(again.source))
    monkeypatch.setattr("potstill.distill.cut.cut", lambda *_, **__: pytest.fail("cut again"))
    assert start(settings).report == made.report


def test_shapes_are_compared_after_a_short_fit_and_the_best_is_fitted_on_all(
    start: Callable[..., Start], teacher: Any, rows: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"axes": "both", "parameters_ratio": 0.6, **SMALL, "calibration_tokens": 400}
    at_once = start(settings).report
    fitted: list[int] = []

    def counting(whole: Any, small: Any, parts: Any, batches: Any) -> Any:
        fitted.append(sum(ids.numel() for ids in batches))
        return refit(whole, small, parts, batches)

    monkeypatch.setattr("potstill.distill.cut.refit", counting)
    monkeypatch.setattr("potstill.distill.cut.COMPARED_TOKENS", 100)
    made = start(settings, "briefly")
    assert len(fitted) == 3
    assert fitted[0] == fitted[1] < fitted[2] == made.report["fit_tokens"]
    (tried,) = (
        one for one in at_once["tried"] if one["parameters"] == made.report["parameters"]["student"]
    )
    assert made.report["kl"] == tried["kl"]
    assert made.report["kl"] != min(one["kl"] for one in made.report["tried"])
    held_out = [torch.tensor([row.ids]) for row in rows[8:]]
    assert likeness.kl(teacher, made.load(), held_out) == pytest.approx(tried["kl"], abs=1e-4)


def test_the_likeness_is_the_mean_forward_kl(teacher: Any, rows: list[Any]) -> None:
    student = drop_layers(load_model(Path(teacher.name_or_path)), [1])
    batches = [torch.tensor([row.ids]) for row in rows]
    total, tokens = 0.0, 0
    for ids in batches:
        with torch.no_grad():
            log_p, log_q = (m(ids).logits.double().log_softmax(-1) for m in (teacher, student))
        total += float((log_p.exp() * (log_p - log_q)).sum())
        tokens += ids.numel()
    assert likeness.kl(teacher, student, batches, 10_000) == pytest.approx(total / tokens, rel=1e-4)
    assert likeness.kl(teacher, student, batches, 7) > 0
    with pytest.raises(ModelError, match="no calibration text"):
        likeness.kl(teacher, student, [])


def test_a_deep_cut_in_steps_goes_through_trained_models_and_on_after_a_kill(
    start: Callable[..., Start], teacher: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "axes": "both",
        "parameters_ratio": 0.5,
        "steps": 3,
        "step_share": 0.5,
        **SMALL,
        "method": "influence",
    }
    made = start(settings)
    steps = made.report["steps"]
    sizes = [step["parameters"] for step in steps] + [made.report["parameters"]["student"]]
    whole = parameters_of(teacher)
    for number, size in enumerate(sizes, 1):
        assert size <= whole * 0.5 ** (number / 3) * 1.0001
    assert sizes == sorted(sizes, reverse=True)
    for step in steps:
        assert step["training"]["tokens"] > 0
        assert step["training"]["validation"][-1]["kl"] < step["training"]["validation"][0]["kl"]

    from potstill.distill import stages_of_cut

    train, calls = stages_of_cut.train_student, []

    def killed(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs["name"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train(*args, **kwargs)

    monkeypatch.setattr(stages_of_cut, "train_student", killed)
    with pytest.raises(KeyboardInterrupt):
        start(settings, "killed")
    again = start(settings, "killed")
    assert calls == ["step 1", "step 2", "step 2"]
    assert again.report == made.report
    assert digests_of(Path(again.source)) == digests_of(Path(made.source))


def test_between_cuts_the_tokens_are_a_share_and_pairs_of_layers_are_left_out(
    config_of: Configs,
) -> None:
    student = {"steps": 2, "step_share": 0.25}
    config = config_of(student=student, max_tokens=1000, hidden={"mse_weight": 1.0}, signal="live")
    between = shortened(config)
    assert (between.max_tokens, between.epochs) == (250, 0.5)
    assert not between.needs_live_teacher
    assert shortened(config_of(student=student)).max_tokens is None


@pytest.fixture
def pretrained(teacher_folder: Path, tmp_path: Path) -> Path:
    """A student of two layers in a folder, with its tokenizer."""
    folder = tmp_path / "pretrained"
    drop_layers(load_model(teacher_folder), [0, 2]).save_pretrained(folder)
    load_tokenizer(teacher_folder).save_pretrained(folder)
    return folder


def test_the_stage_trains_a_pretrained_student_with_its_own_tokenizer(
    config_of: Configs, run_stage: Callable[..., Draft], pretrained: Path, tmp_path: Path
) -> None:
    config = config_of(student={"model": str(pretrained)}, epochs=1)
    assert set(facts(config, tmp_path)) == {"teacher", "student"}
    assert facts(config, tmp_path)["student"] != facts(config, tmp_path)["teacher"]
    draft = run_stage(config)
    report = json.loads((draft.data / "surgery.json").read_text())
    assert report["method"] == "pretrained"
    assert report["parameters"]["student"] < report["parameters"]["teacher"]
    for name in ("undistilled", "distilled", "finetuned"):
        saved = draft.data / "models" / name
        assert load_model(saved).config.num_hidden_layers == 2
        assert (saved / "tokenizer.json").exists()
    undistilled = load_model(draft.data / "models" / "undistilled").state_dict()
    for name, value in load_model(pretrained, torch.bfloat16).state_dict().items():
        assert torch.equal(undistilled[name], value.float())
    earlier = {
        "ingest": {"chunks": 10.0, "chunk_tokens": 100.0},
        "generate": {"rows": 20.0},
        "curate": {"train_rows": 20.0, "validation_rows": 4.0},
    }
    assert estimate(config, earlier, tmp_path)["parameters"] == report["parameters"]["student"]


def test_a_distiller_takes_every_way_to_a_student(
    teacher_folder: Path,
    pretrained: Path,
    small: Callable[..., dict[str, Any]],
    examples: list[Any],
    tmp_path: Path,
) -> None:
    settings = small(epochs=1, validations=1)
    cut = {"axes": "width", "parameters_ratio": 0.7, "round_to": 16, **SMALL}
    made = Distiller(teacher_folder, cut, output=tmp_path / "cut", **settings).train(examples)
    assert made.model.config.num_hidden_layers == 4
    assert load_model(made.folder).config.intermediate_size == made.model.config.intermediate_size
    assert json.loads((tmp_path / "cut" / "surgery.json").read_text())["axes"] == "width"
    given = Distiller(
        teacher_folder, {"model": str(pretrained)}, output=tmp_path / "given", **settings
    ).train(examples)
    assert given.model.config.num_hidden_layers == 2


@pytest.mark.parametrize(
    ("student", "what"),
    [
        ({"parameters_ratio": 0.5, "parameters": 100}, "parameters_ratio and parameters contra"),
        ({"memory": 100, "speed": 2.0}, "memory and speed contradict"),
        ({"parameters_ratio": 0.5, "drop_layers": 1}, "parameters_ratio and drop_layers contra"),
        ({"model": "m", "parameters_ratio": 0.5}, "parameters_ratio cannot be given"),
        ({"model": "m", "steps": 2}, "steps cannot be given"),
        ({"model": "m", "axes": "both"}, "axes cannot be given"),
        ({"drop_layers": 1, "axes": "width"}, "drop_layers cuts depth alone"),
        ({"drop_layers": 1, "steps": 2}, "steps need a size"),
        ({"speed": 0.5}, "greater than or equal to 1"),
    ],
)
def test_fields_that_contradict_each_other_are_refused_at_once(
    student: dict[str, Any], what: str, tmp_path: Path
) -> None:
    with pytest.raises(ValidationError, match=what):
        StudentConfig(**student)
    with pytest.raises(UsageError, match=what):
        Distiller("t", student, output=tmp_path, tokenizer=object())
    assert StudentConfig(model="m", parameters_ratio=None).size == "parameters_ratio"


@pytest.mark.parametrize(
    ("student", "what"),
    [
        ({"parameters_ratio": 0.05, "axes": "depth"}, "cut along depth has"),
        ({"parameters_ratio": 0.05}, "cut along depth and width has"),
        ({"parameters": 10, "axes": "both"}, "cut along depth and width has"),
        ({"memory": 10, "axes": "width"}, "cut along width has"),
    ],
)
def test_a_size_that_cannot_be_is_known_before_anything_is_computed(
    config_of: Configs, student: dict[str, Any], what: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=what):
        facts(config_of(student=student), tmp_path)


def test_what_is_cut_by_itself_goes_by_the_family_and_by_what_is_asked_for() -> None:
    assert StudentConfig().along("llama") == "both"
    assert StudentConfig().along("granite") == "depth"
    assert StudentConfig(drop_layers=2).along("llama") == "depth"
    assert StudentConfig(axes="width").along("granite") == "width"


def test_an_unknown_architecture_is_refused_for_widths_and_known_for_layers(
    start: Callable[..., Start],
    config_of: Configs,
    teacher_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    events_of: Callable[[], list[dict[str, Any]]],
) -> None:
    folder = tmp_path / "stranger"
    folder.mkdir()
    fields = json.loads((teacher_folder / "config.json").read_text()) | {"model_type": "granite"}
    (folder / "config.json").write_text(json.dumps(fields))
    shutil.copy(teacher_folder / "model.safetensors", folder)
    with pytest.raises(ModelError, match="'granite' cannot be cut"):
        facts(config_of(teacher=str(folder), student={"axes": "both"}), tmp_path)
    assert "teacher" in facts(config_of(teacher=str(folder), student={"axes": "depth"}), tmp_path)
    monkeypatch.delitem(FAMILIES, "llama")
    with pytest.raises(ModelError, match="'llama' cannot be cut"):
        start({"axes": "width"})
    made = start({"parameters_ratio": 0.7, "method": "influence", **SMALL})
    assert made.report["axes"] == "depth"
    dropped = drop_layers(load_model(teacher_folder), made.report["dropped"])
    for name, value in made.load().state_dict().items():
        assert torch.equal(value, dropped.state_dict()[name])
    (warning,) = [event for event in events_of() if event["kind"] == "warning"]
    assert "what is left of it is not fitted" in warning["message"]


def test_a_pretrained_student_of_another_vocabulary_is_refused(
    config_of: Configs, run_stage: Callable[..., Draft], pretrained: Path
) -> None:
    fields = json.loads((pretrained / "tokenizer.json").read_text())
    words = fields["model"]["vocab"]
    first, second = sorted(words, key=lambda word: words[word])[-2:]
    words[first], words[second] = words[second], words[first]
    (pretrained / "tokenizer.json").write_text(json.dumps(fields))
    with pytest.raises(TrainingError, match="different vocabularies"):
        run_stage(config_of(student={"model": str(pretrained)}))
