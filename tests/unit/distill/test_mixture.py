"""Several teachers: the mixture's loss and gradient, who has a say where, what is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from potstill.core.stage import Artifact, Draft
from potstill.distill import DistillConfig, Distiller, StudentConfig, losses
from potstill.distill.attention import use
from potstill.distill.batches import Row, RowSet, active_counts, encode_rows
from potstill.distill.families import group
from potstill.distill.mixture import Mixture, Teachers
from potstill.distill.objective import Objective
from potstill.distill.panel import Panel, resolved
from potstill.distill.plan import facts
from potstill.distill.signals import CacheFormat, LiveTeacher, open_cache
from potstill.distill.teachers_config import TeacherConfig
from potstill.distill.terms import TermLoss, Weights
from potstill.errors import StoreError, TrainingError
from potstill.models.body import body_of
from potstill.models.load import load_model, load_tokenizer
from potstill.models.surgery import drop_layers
from potstill.records import Example

Configs = Callable[..., DistillConfig]
Run = Callable[..., Draft]
OBJECTIVE = Objective(
    kd_weight=0.8,
    divergence={"forward_kl": 0.5, "jsd": 0.5},
    temperature=2.0,
    ce_weight=0.3,
)
SHARES = {"both": (0.75, 0.25), "first": (1.0, 0.0), "second": (0.0, 1.0)}


@pytest.fixture(scope="session")
def second_folder(teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another teacher with the same tokenizer: other weights, and surer of itself."""
    model = load_model(teacher_folder)
    torch.manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.4)
    folder = tmp_path_factory.mktemp("second")
    model.save_pretrained(folder)
    load_tokenizer(teacher_folder).save_pretrained(folder)
    return folder


def _kind(number: int) -> str:
    return ("both", "first", "second")[number // 4]


def _plain(
    student: Any, teachers: list[Any], rows: list[Row], confident: bool
) -> tuple[float, Tensor]:
    """The objective in float64, row by row from full logits, by its definition."""
    objective, temperature = OBJECTIVE, OBJECTIVE.temperature
    student = copy.deepcopy(student).double()
    teachers = [copy.deepcopy(one).double() for one in teachers]
    kd = ce = torch.zeros((), dtype=torch.float64)
    counts = active_counts(rows, objective.active)
    for number, row in enumerate(rows):
        ids = torch.tensor([row.ids])
        z = student(input_ids=ids).logits[0, :-1]
        log_q = (z / temperature).log_softmax(-1)
        with torch.no_grad():
            said = [one(input_ids=ids).logits[0, :-1] / temperature for one in teachers]
        shares = [torch.full((len(z),), one).double() for one in SHARES[_kind(number)]]
        if confident:
            sure = [one.softmax(-1).max(-1).values for one in said]
            raw = [share * one for share, one in zip(shares, sure, strict=True)]
            shares = [one / (raw[0] + raw[1]) for one in raw]
        for logits, share in zip(said, shares, strict=True):
            log_p = logits.log_softmax(-1)
            for name, part in objective.shares.items():
                divergence = losses.by_name(name, objective.parameters.get(name))
                kd = kd + (share * part * divergence(log_q, log_p)).sum() * temperature**2
        nll = -z.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        ce = ce + nll[row.answer_start - 1 :].sum()
    value = 0.8 * kd / counts["kd"] + 0.3 * ce / counts["ce"]
    value.backward()
    found = [one.grad.flatten() for one in body_of(student).parameters() if one.grad is not None]
    return float(value.detach()), torch.cat(found)


@pytest.mark.parametrize("confident", [False, True])
@pytest.mark.parametrize("source", ["live", "hidden_bf16", "top_k"])
def test_value_and_gradient_are_those_of_the_definition(
    source: str,
    confident: bool,
    teacher: Any,
    second_folder: Path,
    rows: list[Row],
    tmp_path: Path,
) -> None:
    models = [teacher, load_model(second_folder)]
    student = drop_layers(copy.deepcopy(teacher), [1]).requires_grad_(True)
    words = int(teacher.lm_head.weight.shape[0])
    weights = torch.tensor([SHARES[_kind(number)] for number in range(len(rows))]).T
    families = []
    for first in (0, 4, 8):
        some = [row.ids for row in rows[first : first + 4]]
        own = group(some, computed=500, in_full=2000)
        families += [tuple(first + one for one in family) for family in own]
    data = RowSet(rows, families, True)
    expected, gradient = _plain(student, models, rows, confident)
    use(student)
    signals: list[Any] = []
    for number, model in enumerate(models):
        use(model)
        live = LiveTeacher(model, torch.float32)
        heard = [family for family in families if weights[number, family[0]] > 0]
        form = CacheFormat(source, words - 1 if source == "top_k" else 64, temperature=2.0)
        signals.append(
            live
            if source == "live"
            else open_cache(
                tmp_path / str(number),
                live,
                str(number),
                RowSet(rows, heard, True),
                form,
                lambda done, of: None,
            )
        )
    signal = Teachers(signals, weights, vocabulary=words, confidence=2.0 if confident else None)
    loss = TermLoss(student, signal, OBJECTIVE, vocabulary=words, dtype=torch.float32)
    batch = data.collate(families, OBJECTIVE.active, 0)
    totals = active_counts(rows, OBJECTIVE.active)
    value, sums = loss(rows, batch, Weights(kd=0.8, ce=0.3), totals, details=True)
    value.backward()
    found = torch.cat(
        [one.grad.flatten() for one in body_of(student).parameters() if one.grad is not None]
    )
    near = 1e-5 if source == "live" else 5e-3
    assert float(value.detach()) == pytest.approx(expected, rel=near)
    assert float((found - gradient).norm() / gradient.norm()) < (1e-4 if near < 1e-4 else 2e-2)
    assert ("teacher_entropy" in sums) == (source != "top_k")
    assert 0 <= sums["agreement"] <= totals["kd"]
    assert loss.flops(batch) > 0
    assert not loss.teacher_is_broken(rows, batch)


def test_each_teacher_is_asked_for_its_own_rows_alone(
    teacher: Any, rows: list[Row], live: LiveTeacher
) -> None:
    weights = torch.tensor([SHARES[_kind(number)] for number in range(len(rows))]).T
    data = RowSet.apart(rows, packed=True)
    use(teacher)
    batch = data.collate(data.families, OBJECTIVE.active, 0)
    said = Teachers([live, live], weights, vocabulary=live.output.words).tokens(rows, batch)
    assert isinstance(said, Mixture)
    owner = torch.full((batch.input_ids.numel(),), -1)
    for row, span in zip(batch.rows, batch.spans, strict=True):
        owner[span.flat()] = row
    for number, part in enumerate(said.parts):
        asked = {int(one) for one in owner[batch.positions[part.at]]}
        assert asked == {row for row in range(12) if weights[number, row] > 0}
        assert part.share.equal(weights[number, owner[batch.positions[part.at]]])
    shares = torch.zeros(len(batch.positions))
    for part in said.parts:
        shares.index_add_(0, part.at, part.share)
    assert torch.allclose(shares, torch.ones(()))


@given(
    st.lists(st.floats(0.01, 100), min_size=2, max_size=4),
    st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=6),
    st.floats(0.1, 10),
)
def test_weights_sum_to_one_and_are_relative(
    weights: list[float], documents: list[str], scale: float
) -> None:
    rows = [Row(str(number), (1, 2), 1, document=one) for number, one in enumerate(documents)]
    patterns = [None, "a", ("b", "c"), "*"]

    def table(factor: float) -> Tensor:
        voices = [
            TeacherConfig(teacher="t", weight=factor * weight, documents=pattern)
            for weight, pattern in zip(weights, patterns, strict=False)
        ]
        return Panel(voices, {}, None).weights(rows)

    found = table(1.0)
    assert torch.allclose(found.sum(0), torch.ones(()))
    assert torch.allclose(found, table(scale), atol=1e-6)
    for number, row in enumerate(rows):
        assert (found[1, number] > 0) == (row.document == "a")


@pytest.mark.parametrize("confidence", [None, 2.0])
def test_the_same_teacher_twice_is_that_teacher(
    confidence: float | None, teacher: Any, rows: list[Row], live: LiveTeacher
) -> None:
    student = drop_layers(copy.deepcopy(teacher), [1]).requires_grad_(True)
    use(teacher)
    use(student)
    data = RowSet.apart(rows, packed=True)
    batch = data.collate(data.families, OBJECTIVE.active, 0)
    totals = active_counts(rows, OBJECTIVE.active)
    words = live.output.words
    weights = torch.tensor([[0.3], [0.7]]).expand(2, len(rows))
    twice = Teachers([live, live], weights, vocabulary=words, confidence=confidence)
    found = []
    for signal in (live, twice):
        loss = TermLoss(student, signal, OBJECTIVE, vocabulary=words, dtype=torch.float32)
        value, sums = loss(rows, batch, Weights(kd=0.8, ce=0.3), totals, details=True)
        (gradient,) = torch.autograd.grad(value, student.lm_head.weight)
        found.append((value.detach(), gradient, sums, loss.flops(batch)))
    assert found[0][0].item() == pytest.approx(found[1][0].item(), rel=1e-5)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-6)
    assert found[0][2] == pytest.approx(found[1][2], rel=1e-4)
    assert found[1][3] > found[0][3]  # a second pass of the teacher


def test_the_distiller_takes_several_teachers(
    teacher_folder: Path, second_folder: Path, tmp_path: Path
) -> None:
    rows = [
        {"prompt": f"How many tons has {n}?", "completion": f"{n} tons", "document": "ab"[n % 2]}
        for n in range(20)
    ]
    teachers = [{"documents": "a"}, {"teacher": str(second_folder), "documents": "b"}]
    settings: dict[str, Any] = {"epochs": 1, "step_tokens": 200, "precision": "fp32"}
    student = {"drop_layers": 1, "calibration_tokens": 64}

    def trained(name: str, **changes: Any) -> bytes:
        folder = tmp_path / name
        Distiller(str(teacher_folder), student, output=folder, **settings, **changes).train(rows)
        return (folder / "model" / "model.safetensors").read_bytes()

    assert trained("two", teachers=teachers) != trained("one")
    with pytest.raises(StoreError, match="teachers"):
        trained("two", teachers=[{"documents": "*"}])


@pytest.fixture
def two_documents(stage_inputs: dict[str, Artifact]) -> dict[str, Artifact]:
    """Odd rows are of another document, pumps.md."""
    for name in ("train.jsonl", "validation.jsonl"):
        path = stage_inputs["curate"].path(name)
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines[1::2]:
            line["provenance"]["document"] = "p"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = stage_inputs["ingest"].path("chunks.jsonl")
    chunks = [json.loads(line) for line in path.read_text().splitlines()]
    chunks.append(chunks[0] | {"id": "p1", "document": "p", "source": "wells/pumps.md"})
    path.write_text("".join(json.dumps(chunk) + "\n" for chunk in chunks))
    return stage_inputs


@pytest.fixture
def config_of(config_of: Configs) -> Configs:
    student = StudentConfig(drop_layers=1, calibration_tokens=64)
    return partial(config_of, student=student, learning_rate=3e-3)


def test_one_entry_is_the_same_as_a_single_teacher_bit_by_bit(
    config_of: Configs, run_stage: Run
) -> None:
    found = []
    for name, teachers in (("plain", []), ("listed", [{"weight": 0.3}])):
        draft = run_stage(config_of(teachers=teachers), name)
        weights = draft.data / "models" / "distilled" / "model.safetensors"
        found.append((weights.read_bytes(), (draft.data / "history.json").read_bytes()))
    assert found[0] == found[1]


@pytest.mark.parametrize("signal", ["live", "hidden_bf16", "top_k", "sampled"])
def test_a_run_with_two_teachers_of_their_own_documents(
    signal: str,
    config_of: Configs,
    run_stage: Run,
    two_documents: dict[str, Artifact],
    second_folder: Path,
) -> None:
    teachers = [{"documents": "*.pdf"}, {"teacher": str(second_folder), "documents": "wells/*"}]
    config = config_of(
        teachers=teachers,
        signal=signal,
        signal_count=16,
        epochs=5,
        patience=0,
        ce_weight=0.01,
    )
    draft = run_stage(config, inputs=two_documents)
    history = json.loads((draft.data / "history.json").read_text())["distilled"]["validation"]
    assert history[-1]["kl"] < 0.9 * history[0]["kl"]
    assert json.loads((draft.data / "training.json").read_text())["signal"] == signal


def test_shared_say_by_confidence_in_a_run(
    config_of: Configs, run_stage: Run, two_documents: dict[str, Artifact], second_folder: Path
) -> None:
    teachers = [{}, {"teacher": str(second_folder), "documents": ["wells/*"], "weight": 2}]
    config = config_of(teachers=teachers, teacher_weighting="confidence", epochs=1)
    draft = run_stage(config, inputs=two_documents)
    assert (draft.data / "models" / "distilled" / "model.safetensors").exists()


def test_the_probe_finds_a_mixture_that_is_not_the_one_asked_for(
    config_of: Configs,
    run_stage: Run,
    two_documents: dict[str, Artifact],
    second_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = Teachers._weights
    mistakes = [lambda self, batch: real(self, batch).flip(0), lambda *a: 1.1 * real(*a)]
    for number, mistake in enumerate(mistakes):
        monkeypatch.setattr(Teachers, "_weights", mistake)
        teachers = [{}, {"teacher": str(second_folder), "weight": 3}]
        config = config_of(teachers=teachers, signal="live", ce_weight=0.0)
        with pytest.raises(TrainingError, match=r"term kd is .* computed plainly it is"):
            run_stage(config, f"draft{number}", two_documents)


def test_weights_of_documents_are_shared_out_row_by_row(
    config_of: Configs, second_folder: Path, tokenizer: Any, examples: list[Example]
) -> None:
    rows = encode_rows(examples, tokenizer, 500)
    config = config_of(
        teachers=[{"weight": 3}, {"teacher": str(second_folder), "documents": "boiler*"}],
    )
    assert Panel.of(config, tokenizer, rows, rows, {"d": "boiler.pdf"}) is not None
    panel = Panel(config.voices, {"d": "boiler.pdf"}, None)
    assert panel.weights(rows[:2]).tolist() == [[0.75, 0.75], [0.25, 0.25]]
    assert Panel(config.voices, {}, None).weights(rows[:2]).tolist() == [[1.0, 1.0], [0.0, 0.0]]
    assert len(set(panel.kinds(rows))) == 1


def test_patterns_that_match_nothing_name_the_documents(
    config_of: Configs, second_folder: Path, tokenizer: Any, examples: list[Example]
) -> None:
    rows = encode_rows(examples, tokenizer, 500)
    other = {"teacher": str(second_folder), "documents": "manual/*"}
    config = config_of(teachers=[{}, other])
    with pytest.raises(TrainingError, match=r"teachers\[1\].documents \(manual/\*\) matches no"):
        Panel.of(config, tokenizer, rows, rows, {"d": "boiler.pdf"})
    with pytest.raises(TrainingError, match=r"They are of boiler\.pdf\."):
        Panel.of(config, tokenizer, rows, rows, {"d": "boiler.pdf"})
    few = [Row("other", rows[0].ids, 1, document="x")]
    config = config_of(teachers=[{"documents": "boiler.pdf"}])
    with pytest.raises(TrainingError, match=r"1 rows have no teacher: those of x"):
        Panel.of(config, tokenizer, [*rows, *few], rows, {"d": "boiler.pdf"})


def test_teachers_of_different_words_are_refused(
    config_of: Configs,
    tokenizer: Any,
    examples: list[Example],
    make_student: Callable[..., Path],
    tmp_path: Path,
) -> None:
    rows = encode_rows(examples, tokenizer, 500)
    stranger = make_student(tmp_path / "stranger", text="zyx wvu " * 200, vocabulary=300)
    config = config_of(teachers=[{}, {"teacher": str(stranger)}])
    with pytest.raises(TrainingError, match="have different vocabularies"):
        Panel.of(config, tokenizer, rows, rows, {})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"teachers": [{"weight": 0}, {"weight": 0}]}, "greater than 0"),
        ({"teachers": [{}, {}], "hidden": {"mse_weight": 1}}, "layers of one teacher"),
        ({"teacher_weighting": "confidence"}, "for several teachers"),
        (
            {"teachers": [{}, {}], "teacher_weighting": "confidence", "signal": "sampled"},
            "sampled does not hold",
        ),
        ({"teachers": [{"documents": []}]}, "at least one pattern"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        DistillConfig(teacher="t", **changes)


def test_all_teachers_are_in_the_key_and_the_corrected_one_takes_its_place(
    config_of: Configs, second_folder: Path, tmp_path: Path
) -> None:
    config = config_of(teachers=[{}, {"teacher": str(second_folder)}])
    named = facts(config, tmp_path)
    assert list(named) == ["teacher", "teacher 2"]
    assert len(set(named.values())) == 2
    better = resolved(config, "corrected")
    assert better.teacher == "corrected"
    assert [one.teacher for one in better.voices] == ["corrected", str(second_folder)]
    assert resolved(config_of(teachers=[]), "corrected").teacher == "corrected"
    swapped = config_of(teachers=[{"teacher": str(second_folder)}, {}])
    assert resolved(swapped, "corrected").teacher == str(second_folder)
    assert TeacherConfig(documents=("a/*", "b")).teaches("a/x/y")
