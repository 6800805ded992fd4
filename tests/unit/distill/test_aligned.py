"""Teachers with other tokenizers: values and gradients against plain ones, and one tokenizer on
both sides as a special case."""

from __future__ import annotations

import copy
import json
import math
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from potstill.core.events import Emitter
from potstill.core.stage import Draft
from potstill.distill import Distiller, losses
from potstill.distill.aligned import AlignedTeacher, AlignedTokens, common_words
from potstill.distill.batches import RowSet
from potstill.distill.config import DistillConfig
from potstill.distill.families import group
from potstill.distill.held_out import figures
from potstill.distill.objective import Objective
from potstill.distill.pairs import Encoded, encode_all
from potstill.distill.plan import facts
from potstill.distill.probe import check_loss
from potstill.distill.probe_aligned import plain_spans
from potstill.distill.ranks import Ranks
from potstill.distill.signals import CacheFormat, LiveTeacher, TopK, open_cache
from potstill.distill.spans import span_divergence, two_outcomes
from potstill.distill.sparse import top_k
from potstill.distill.teaching import ranked_block
from potstill.distill.terms import TermLoss, Weights
from potstill.distill.trainer import Steps
from potstill.errors import TrainingError, UsageError
from potstill.models.align import words_of
from potstill.models.load import load_model
from potstill.models.vocabulary import vocabulary_of
from potstill.records import Example

METHODS = ["spans", "words", "spans+words", "uld"]


@pytest.fixture(scope="module")
def other_tokenizer(make_pieces: Callable[..., Any]) -> Any:
    """As Gemma's, with a template and BOS."""
    return make_pieces()


@pytest.fixture(scope="session")
def speaker(random_model: Callable[..., Any]) -> Callable[..., Any]:
    """speaker(tokenizer, seed) -> a random Llama over its words."""

    def made(tokenizer: Any, seed: int) -> Any:
        return random_model(
            seed=seed,
            vocab_size=len(tokenizer),
            intermediate_size=64,
            num_hidden_layers=2,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=None,
        )

    return made


class Bench:
    """A teacher with pieces, a student with bytes (or the other way round), and their rows."""

    def __init__(
        self, student: Any, teacher: Any, student_tokenizer: Any, teacher_tokenizer: Any
    ) -> None:
        self.student = student.requires_grad_(True)
        self.live = LiveTeacher(teacher, torch.float32)
        self.tokenizers = (student_tokenizer, teacher_tokenizer)
        words = words_of(student_tokenizer), words_of(teacher_tokenizer)
        self.common = common_words(words, student, teacher)

    def encode(self, examples: list[Example], **fields: Any) -> Encoded:
        alignment = {"method": "spans", **fields}
        return encode_all(
            DistillConfig(teacher="t", alignment=alignment, sequence_tokens=512),
            examples,
            [],
            [],
            student_tokenizer=self.tokenizers[0],
            teacher_tokenizer=self.tokenizers[1],
        )

    def data(self, examples: list[Example], share: bool = True) -> RowSet:
        encoded = self.encode(examples)
        assert encoded.aligned is not None
        ids = [row.ids for row in encoded.rows]
        families = (
            group(ids, computed=4096, in_full=4096)
            if share
            else RowSet.apart(encoded.rows).families
        )
        return RowSet(encoded.rows, families, False, encoded.aligned[0])

    def loss(self, objective: Objective, data: RowSet, **told: Any) -> TermLoss:
        signal = AlignedTeacher(
            told.pop("source", self.live),
            self.live.output,
            data,
            self.common,
            objective,
            dtype=torch.float32,
            **told,
        )
        words = len(self.tokenizers[0])
        return TermLoss(self.student, signal, objective, vocabulary=words, dtype=torch.float32)


@pytest.fixture(params=["pieces teach bytes", "bytes teach pieces"])
def bench(
    request: pytest.FixtureRequest,
    tokenizer: Any,
    other_tokenizer: Any,
    speaker: Callable[..., Any],
) -> Bench:
    pair = (tokenizer, other_tokenizer)
    ours, theirs = pair if request.param.startswith("pieces") else pair[::-1]
    return Bench(speaker(ours, 1), speaker(theirs, 2), ours, theirs)


def objective(method: str, **more: Any) -> Objective:
    alignment = {"method": method, **more.pop("alignment", {})}
    if "words" in method:
        alignment["words"] = 9
    if "spans" not in method:
        alignment.pop("temperature", None)
    if method == "uld":
        more.pop("divergence", None)
    return Objective(alignment=alignment, **more)


def whole_step(loss: TermLoss, data: RowSet, split: bool) -> tuple[float, Tensor]:
    """Value and gradient of one step of all rows, in one micro-batch or one a family."""
    micros = [[family] for family in data.families] if split else [list(data.families)]
    step = Steps(data, [micros], loss.objective.active, 0, Ranks())[0]
    weights = Weights.highest(loss.objective)
    parts = [loss(data.rows, batch, weights, step.totals)[0] for batch in step.batches]
    learning = [one for one in loss.student.parameters() if one.requires_grad]
    grads = torch.autograd.grad(torch.stack(parts).sum(), learning, allow_unused=True)
    flat = [torch.zeros_like(p) if g is None else g for g, p in zip(grads, learning, strict=True)]
    return float(torch.stack(parts).sum().detach()), torch.cat([one.flatten() for one in flat])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"temperature": 2.0, "kd_tokens": "answer", "divergence": "jsd"},
        {"divergence": "reverse_kl", "ce_weight": 0.0, "alignment": {"temperature": 20.0}},
    ],
)
def test_value_and_gradient_equal_the_plain_ones(
    bench: Bench, examples: list[Example], method: str, more: dict[str, Any]
) -> None:
    """Full logits row by row, autograd and no sharing, against the machinery in two splits."""
    data = bench.data(examples[:6])
    goal = objective(method, **copy.deepcopy(more))
    loss = bench.loss(goal, data)
    total, spans, tokens = torch.zeros(()), [], []
    assert data.teacher is not None
    for number, row in enumerate(data.rows):
        ours = bench.student(torch.tensor([row.ids])).logits[0, :-1]
        with torch.no_grad():
            theirs = bench.live.model(torch.tensor([data.teacher.rows[number].ids])).logits[0, :-1]
        spans.append(plain_spans(loss.signal, goal, data, number, ours, theirs))  # type: ignore[arg-type]
        ce = torch.nn.functional.cross_entropy(ours, torch.tensor(row.ids[1:]), reduction="none")
        tokens.append(ce[row.answer_start - 1 :])
    total = torch.cat(spans).mean() + float(goal.ce_weight) * torch.cat(tokens).mean()  # type: ignore[arg-type]
    learning = list(bench.student.parameters())
    expected = torch.cat([one.flatten() for one in torch.autograd.grad(total, learning)])
    for split in (False, True):
        value, gradient = whole_step(loss, data, split)
        assert value == pytest.approx(float(total.detach()), rel=1e-5)
        assert float((gradient - expected).norm() / expected.norm()) < 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_the_probe_accepts_it_and_finds_a_wrong_divisor(
    bench: Bench, examples: list[Example], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bench.data(examples)
    loss = bench.loss(objective(method), data)
    check_loss(loss, bench.live, data, 0)
    real = RowSet.active_counts

    def wrong(self: RowSet, numbers: Any, active: Any) -> dict[str, float]:
        counts = real(self, numbers, active)
        return counts | {"kd": counts["kd"] * 2}

    monkeypatch.setattr(RowSet, "active_counts", wrong)
    with pytest.raises(TrainingError, match="The term kd is"):
        check_loss(loss, bench.live, data, 0)


@pytest.mark.parametrize("method", METHODS)
def test_a_file_of_the_teachers_states_says_what_the_live_teacher_says(
    bench: Bench, examples: list[Example], method: str, tmp_path: Path
) -> None:
    data = bench.data(examples[:4])
    form = CacheFormat("hidden_bf16")
    source = open_cache(
        tmp_path / "file", bench.live, "t", data.read_by_teacher, form, lambda done, of: None
    )
    live, file = (
        whole_step(bench.loss(objective(method), data, **told), data, False)[0]
        for told in ({}, {"source": source})
    )
    assert file == pytest.approx(live, rel=0.05)


def test_rows_that_share_a_beginning_count_for_each(bench: Bench, examples: list[Example]) -> None:
    goal = objective("spans+words", ce_weight=0.0)
    shared, apart = bench.data(examples), bench.data(examples, share=False)
    assert len(shared.families) < len(apart.families)
    values = [whole_step(bench.loss(goal, data), data, False) for data in (shared, apart)]
    assert values[0][0] == pytest.approx(values[1][0], rel=1e-5)
    assert float((values[0][1] - values[1][1]).norm() / values[1][1].norm()) < 1e-4


@pytest.fixture
def same(tokenizer: Any, teacher: Any) -> Bench:
    """One tokenizer on both sides."""
    return Bench(copy.deepcopy(teacher), teacher, tokenizer, tokenizer)


def test_words_of_one_vocabulary_are_plain_top_k(same: Bench, examples: list[Example]) -> None:
    """Every aligned token's TopK is the one that a file of the teacher's words would hold."""
    data = same.data(examples[:5])
    loss = same.loss(objective("words"), data)
    batch = data.collate(list(data.families), loss.objective.active, 0)
    said = loss.signal.tokens(data.rows, batch)
    assert isinstance(said, AlignedTokens)
    assert isinstance(said.next, TopK)
    states = same.live.tokens(data.rows, batch).states
    plain = top_k(same.live.output.logits(states), 9, 1.0)
    at = said.counts > 0
    assert int(at.sum()) > 40
    assert torch.equal(said.next.ids[at], plain.ids[at])
    assert torch.allclose(said.next.log_p[at], plain.log_p[at], atol=1e-5)
    assert torch.allclose(said.next.tail[at], plain.tail[at], atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_with_one_tokenizer_students_are_ranked_as_plain_kl_ranks_them(
    same: Bench, examples: list[Example], method: str
) -> None:
    """Growing noise: both losses ascend, so their Spearman correlation is 1."""
    data = same.data(examples[:5])
    plain_data = RowSet(data.rows, data.families)
    goal, plain = objective(method, ce_weight=0.0), Objective(ce_weight=0.0)
    words = len(same.tokenizers[0])
    torch.manual_seed(3)
    start = {name: value.clone() for name, value in same.student.state_dict().items()}
    noise = {name: torch.randn_like(value) for name, value in start.items()}
    found = []
    for size in (0.0, 0.01, 0.02, 0.04, 0.08, 0.16):
        for name, value in same.student.state_dict().items():
            value.copy_(start[name] + size * noise[name])
        kl = TermLoss(same.student, same.live, plain, vocabulary=words, dtype=torch.float32)
        values = (same.loss(goal, data), data), (kl, plain_data)
        found.append([whole_step(loss, rows, False)[0] for loss, rows in values])
    for column in zip(*found, strict=True):
        assert abs(column[0]) < 1e-5
        assert list(column) == sorted(column)
        assert len(set(column)) == len(column)


def test_two_outcomes_of_a_likelihood() -> None:
    found = two_outcomes(torch.tensor([math.log(0.25), 0.0, -200.0]), 2.0)
    assert found[0].exp().tolist() == pytest.approx([0.5, 0.5])
    assert found[1, 0] == pytest.approx(-5e-7)
    assert torch.isfinite(found).all()
    assert found[2].exp().tolist() == pytest.approx([math.exp(-100), 1.0])


def test_span_divergence_by_hand_and_as_tau_grows() -> None:
    log_q, log_p = torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.8)])
    by_hand = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)
    value = span_divergence(log_q, log_p, losses.forward_kl_rows)
    assert float(value) == pytest.approx(by_hand, rel=1e-6)
    a, b = -math.log(0.8), -math.log(0.5)  # tau -> infinity: of two Poisson rates
    limit = float(span_divergence(log_q, log_p, losses.forward_kl_rows, 1e4))
    assert limit == pytest.approx(a * math.log(a / b) + b - a, rel=1e-3)


def test_sorted_probabilities_by_hand() -> None:
    """(0.6, 0.4) against (0.7, 0.2, 0.1): 0.1 + 0.2 + 0.1, whatever the words are called."""
    ours = torch.tensor([[0.4, 0.6]]).log()
    theirs = torch.tensor([[0.1, 0.7, 0.2]]).log()
    value, grad = ranked_block(ours, theirs, 1.0, torch.ones(1, 1))
    assert float(value) == pytest.approx(0.4, rel=1e-6)
    assert grad is not None
    leaf = ours.clone().requires_grad_(True)
    padded = torch.cat([leaf.softmax(-1).sort(descending=True).values, torch.zeros(1, 1)], 1)
    (padded - torch.tensor([[0.7, 0.2, 0.1]])).abs().sum().backward()
    assert torch.allclose(grad, leaf.grad, atol=1e-6)  # type: ignore[arg-type]


def test_common_words_are_those_of_equal_bytes(bench: Bench) -> None:
    theirs, ours = bench.common.ids()
    known = bench.common.student, bench.common.teacher
    assert len(theirs) == len(set(theirs.tolist())) == len(set(ours.tolist())) > 60
    for one, other in zip(theirs.tolist(), ours.tolist(), strict=True):
        if one in known[1].ends:
            assert other in known[0].ends
        else:
            assert known[1].text[one] == known[0].text[other]
    shifted = bench.common.ids((b"", b" "))
    for one, other in zip(*(side.tolist() for side in shifted), strict=True):
        if one not in known[1].ends | known[1].special:
            assert known[1].text[one] == b" " + (known[0].text[other] or b"")


def test_held_out_figures_are_those_that_exist(bench: Bench, examples: list[Example]) -> None:
    """Bits a byte against full logits; a student that is its teacher agrees wholly."""
    data = bench.data(examples[:4])
    loss = bench.loss(objective("spans+words"), data, measuring=True)
    found = figures(loss, loss.signal, data, Weights(kd=1.0), padding=0, ranks=Ranks())
    assert {"loss", "spans", "bits_per_byte", "agreement", "ce", "ce_answer"} <= set(found)
    assert "kl" not in found
    nats = size = 0.0
    assert data.teacher is not None
    for row, spans in zip(data.rows, data.teacher.spans, strict=True):
        with torch.no_grad():
            log_q = bench.student(torch.tensor([row.ids])).logits[0].double().log_softmax(-1)
        for span in spans:
            nats -= sum(float(log_q[at - 1, row.ids[at]]) for at in range(*span.first))
            size += span.size
    assert found["bits_per_byte"] == pytest.approx(nats / size / math.log(2), rel=1e-5)


def test_a_student_that_is_its_teacher_agrees_at_every_boundary(
    same: Bench, examples: list[Example]
) -> None:
    data = same.data(examples[:4])
    loss = same.loss(objective("spans"), data, measuring=True)
    found = figures(loss, loss.signal, data, Weights(kd=1.0), padding=0, ranks=Ranks())
    assert found["agreement"] == found["agreement_answer"] == 1.0
    assert abs(found["spans"]) < 1e-6


def test_rows_that_cannot_be_aligned_are_rejected_with_a_reason(
    tokenizer: Any,
    speaker: Callable[..., Any],
    make_pieces: Callable[..., Any],
    examples: list[Example],
    tmp_path: Path,
) -> None:
    loud = make_pieces("{% for m in messages %}{{ m['content'] | upper }}<end_of_turn>{% endfor %}"
                       "{% if add_generation_prompt %}{% endif %}")  # fmt: skip
    bench = Bench(speaker(tokenizer, 1), speaker(loud, 1), tokenizer, loud)
    encoded = bench.encode(examples)
    assert encoded.rows == []
    assert {one.reason for one in encoded.rejected} == {"words_changed"}
    assert "changes the words" in encoded.rejected[0].detail
    diary = tmp_path / "events.jsonl"
    encoded.report(0.99, Emitter(diary, "distill"))
    kinds = [json.loads(line)["kind"] for line in diary.read_text().splitlines()]
    assert kinds.count("rejected") == len(examples)
    assert "warning" in kinds


@pytest.fixture(scope="module")
def other_folder(
    tmp_path_factory: pytest.TempPathFactory, other_tokenizer: Any, speaker: Callable[..., Any]
) -> Path:
    folder = tmp_path_factory.mktemp("other")
    speaker(other_tokenizer, 5).save_pretrained(folder)
    other_tokenizer.save_pretrained(folder)
    return folder


SETTINGS = {"epochs": 2, "step_tokens": 500, "validations": 2, "precision": "fp32"}


@pytest.mark.parametrize("signal", ["live", "auto"])
def test_a_distiller_trains_a_student_with_a_tokenizer_of_its_own(
    teacher_folder: Path,
    other_folder: Path,
    examples: list[Example],
    tmp_path: Path,
    signal: str,
) -> None:
    distilled = Distiller(
        teacher_folder,
        other_folder,
        output=tmp_path / "out",
        alignment={"method": "spans+words"},
        signal=signal,
        **SETTINGS,
    ).train(examples)
    before, after = distilled.history["validation"][0], distilled.history["validation"][-1]
    assert after["loss"] < before["loss"]
    assert after["spans"] < before["spans"]
    assert {"kd", "ce"} <= set(distilled.history["steps"][0])
    assert distilled.tokenizer.get_vocab() == load_vocabulary(other_folder)
    assert load_model(distilled.folder).config.vocab_size == len(distilled.tokenizer)
    assert (tmp_path / "out" / "rejected.jsonl").read_text() == ""


def load_vocabulary(folder: Path) -> dict[str, int]:
    from potstill.models.load import load_tokenizer

    found: dict[str, int] = load_tokenizer(folder).get_vocab()
    return found


def test_different_tokenizers_without_alignment_are_one_clear_error(
    teacher_folder: Path, other_folder: Path, examples: list[Example], tmp_path: Path
) -> None:
    distiller = Distiller(teacher_folder, other_folder, output=tmp_path / "out", **SETTINGS)
    with pytest.raises(TrainingError, match=r"different vocabularies.*distill\.alignment\.method"):
        distiller.train(examples)
    assert not (tmp_path / "out").exists()  # before anything is done


def test_a_loaded_student_needs_its_tokenizer(
    teacher_folder: Path, other_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="needs its own tokenizer"):
        Distiller(
            teacher_folder,
            load_model(other_folder),
            output=tmp_path / "out",
            alignment={"method": "uld"},
        )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"signal": "top_k"}, "keeps words of the teacher's vocabulary"),
        ({"signal": "sampled"}, "keeps words of the teacher's vocabulary"),
        ({"hidden": {"mse_weight": 1.0}}, "token by token"),
        ({"on_policy": {"share": 0.5}}, "which needs one tokenizer"),
        ({"alignment": {"method": "uld"}, "divergence": "jsd"}, "divergence has no effect"),
        ({"alignment": {"method": "words", "temperature": 2}}, "temperature has no effect"),
        ({"alignment": {"method": "spans", "words": 9}}, "words has no effect"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistillConfig(**{"teacher": "t", "alignment": {"method": "spans"}, **fields})


@pytest.fixture
def aligned_config(config_of: Callable[..., DistillConfig]) -> Callable[..., DistillConfig]:
    """aligned_config(student, method, **changes) -> the config of a student that is there."""
    tokens = dict.fromkeys(("step_tokens", "micro_tokens", "sequence_tokens"), 300)

    def made(student: Path, method: str, **changes: Any) -> DistillConfig:
        own = {"student": {"model": str(student)}, "alignment": {"method": method}, "patience": 0}
        return config_of(**tokens, **own, **changes)

    return made


def test_the_stage_takes_a_student_that_is_there_with_its_tokenizer(
    aligned_config: Callable[..., DistillConfig],
    run_stage: Callable[..., Draft],
    other_folder: Path,
) -> None:
    """Passages too; all three models keep the student's tokenizer; both are the stage's facts."""
    config = aligned_config(other_folder, "spans", passages=True)
    draft = run_stage(config)
    for name in ("undistilled", "distilled", "finetuned"):
        assert load_vocabulary(draft.data / "models" / name) == load_vocabulary(other_folder)
    training = json.loads((draft.data / "training.json").read_text())
    assert training["alignment"] == "spans"
    assert training["aligned_share"] > 0.99
    assert training["rejected_rows"] == 0
    assert training["rows"] == 8 + 4  # and four passages
    history = json.loads((draft.data / "history.json").read_text())
    last = {name: one["validation"][-1] for name, one in history.items()}
    assert last["distilled"]["spans"] < last["finetuned"]["spans"]
    assert set(facts(config, Path())) == {"teacher", "student"}


def test_a_run_hears_of_other_tokenizers_before_any_stage(
    aligned_config: Callable[..., DistillConfig], teacher_folder: Path, other_folder: Path
) -> None:
    """`facts` are asked for when a run is planned; they load no tokenizer."""
    with pytest.raises(TrainingError, match="different vocabularies"):
        facts(aligned_config(other_folder, "none"), Path())
    facts(aligned_config(other_folder, "words"), Path())
    facts(aligned_config(teacher_folder, "none"), Path())
    assert vocabulary_of(str(other_folder)) == load_vocabulary(other_folder)
    assert vocabulary_of("org/never-fetched") is None


def test_the_stage_refuses_other_tokenizers_before_a_model_is_loaded(
    aligned_config: Callable[..., DistillConfig],
    run_stage: Callable[..., Draft],
    other_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "potstill.distill.run.open_teacher", lambda *_, **__: pytest.fail("was loaded")
    )
    config = aligned_config(other_folder, "none")
    with pytest.raises(TrainingError, match=r"distill\.alignment\.method"):
        run_stage(config)


@pytest.fixture
def strange_rows(make_row: Callable[..., Example]) -> list[Example]:
    """Rows with answers in a form in which a tokenizer of NFC loses its way."""
    text = unicodedata.normalize("NFD", "한국어문장은여기에있습니다그리고계속" * 2)
    return [make_row(f"row{n}", f"The boiler holds {n}", "Why?", text, "c") for n in range(3)]


def test_a_training_whose_aligned_rows_have_no_answer_span_is_refused(
    tokenizer: Any,
    make_pieces: Callable[..., Any],
    speaker: Callable[..., Any],
    teacher_folder: Path,
    strange_rows: list[Example],
    tmp_path: Path,
) -> None:
    """The answers of all rows are lost, and `least_share` lets them pass."""
    pieces = make_pieces(form="NFC")
    student = speaker(pieces, 5)
    distiller = Distiller(
        teacher_folder,
        student,
        output=tmp_path / "out",
        student_tokenizer=pieces,
        alignment={"method": "spans", "least_share": 0.0},
        kd_tokens="answer",
        **SETTINGS,
    )
    with pytest.raises(TrainingError, match="No span of any row is active for kd_tokens: answer"):
        distiller.train(strange_rows, validation=strange_rows[:1])


def test_rows_are_left_out_for_reasons_that_are_told_apart(
    tokenizer: Any,
    make_pieces: Callable[..., Any],
    speaker: Callable[..., Any],
    strange_rows: list[Example],
    examples: list[Example],
    tmp_path: Path,
) -> None:
    shouting = make_pieces(
        "{% for m in messages %}{% if 'keeper' in m['content'] %}{{ m['content'] | upper }}"
        "{% else %}{{ m['content'] }}{% endif %}<end_of_turn>{% endfor %}",
        form="NFC",
    )
    bench = Bench(speaker(tokenizer, 1), speaker(shouting, 1), tokenizer, shouting)
    encoded = bench.encode([*examples, *strange_rows])
    diary = tmp_path / "events.jsonl"
    encoded.report(0.99, Emitter(diary, "distill"))
    events = [json.loads(line) for line in diary.read_text().splitlines()]
    said = [event["message"] for event in events if event["kind"] == "warning"]
    changed = sum("keeper" in example.turns[0].content for example in examples)
    assert 0 < changed < len(examples)
    assert said == [
        "3 rows are left out: less than 99% of their bytes are aligned between the two tokenizers.",
        f"{changed} rows are left out: a chat template changes their words.",
    ]
    assert len(encoded.rows) == len(examples) - changed


def test_aligned_rows_keep_their_document(bench: Bench, examples: list[Example]) -> None:
    encoded = bench.encode(examples)
    assert encoded.aligned is not None
    for row in (*encoded.rows, *encoded.aligned[0].rows):
        assert row.document == "d"


def test_vocabularies_are_read_once_for_an_aligned_training(
    tokenizer: Any,
    other_tokenizer: Any,
    teacher_folder: Path,
    other_folder: Path,
    examples: list[Example],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It takes seconds for a large one."""
    read = []

    def counting(tokenizer: Any) -> Any:
        read.append(tokenizer)
        return words_of(tokenizer)

    monkeypatch.setattr("potstill.models.align.words_of", counting)
    Distiller(
        teacher_folder,
        other_folder,
        output=tmp_path / "out",
        alignment={"method": "words"},
        **(SETTINGS | {"epochs": 1, "validations": 1}),
    ).train(examples)
    assert len(read) == 2


def test_what_is_told_apart_does_not_depend_on_the_micro_batch(
    bench: Bench, examples: list[Example]
) -> None:
    goal = objective("words")
    signal = bench.loss(goal, bench.data(examples)).signal
    assert isinstance(signal, AlignedTeacher)
    words = sorted(signal.common.ids()[0].tolist())
    plain, few = (b"", b""), (b"\n", b"\n")
    some = torch.tensor(words[:3])
    ids = signal.common.ids
    signal.common.ids = lambda leads=plain: ids() if leads == plain else (some, some + 1)  # type: ignore[method-assign,assignment]
    states = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    both = signal._words(states, [plain, few])
    alone = [signal._words(states[n : n + 1], [lead]) for n, lead in enumerate((plain, few))]
    for n, one in enumerate(alone):
        for field in ("ids", "log_p", "tail"):
            torch.testing.assert_close(getattr(both, field)[n], getattr(one, field)[0])
    assert both.ids[0].unique().numel() == goal.alignment.words == 9
    assert both.ids[1].unique().numel() == 3
    assert both.log_p[1].exp().sum() + both.tail[1].exp() == pytest.approx(1.0)


def test_a_batch_is_laid_out_once_for_the_teacher(
    bench: Bench, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bench.data(examples)
    loss = bench.loss(objective("spans"), data)
    assert data.teacher is not None
    made = []
    real = RowSet.collate

    def counted(self: RowSet, *args: Any, **kwargs: Any) -> Any:
        made.append(self.rows is data.read_by_teacher.rows)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(RowSet, "collate", counted)
    step = Steps(data, [[[one] for one in data.families]], loss.objective.active, 0, Ranks())[0]
    made.clear()
    for batch in step.batches:
        loss(data.rows, batch, Weights.highest(loss.objective), step.totals)
        assert loss.flops(batch) > 0
    assert sum(made) == len(step.batches)
