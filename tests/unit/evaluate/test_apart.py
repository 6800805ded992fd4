"""The whole stage where the teacher has another tokenizer: only figures that exist."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from potstill.errors import ModelError
from potstill.evaluate import comparison
from potstill.evaluate.apart import two_outcome_kl
from potstill.models.align import Aligner
from potstill.models.chat import encode_example
from potstill.records import Example, Provenance, Turn

PASSAGE = "The Halden valve opens at 42 turns. It is painted teal.\n\n"


def example(number: int) -> Example:
    turns = (
        Turn(role="user", content=f"{PASSAGE}{'Shared. ' * (number % 2)}Question {number}?"),
        Turn(role="assistant", content=f"{number} turns"),
    )
    provenance = Provenance(document="d", chunk="c")
    return Example(
        id=f"row{number}", turns=turns, answers=(f"{number} turns",), provenance=provenance
    )


ROWS = [example(number) for number in range(5)]


@pytest.fixture(scope="module")
def pieces(make_pieces: Callable[..., Any]) -> Any:
    return make_pieces()


@pytest.fixture(scope="module")
def models(
    tmp_path_factory: pytest.TempPathFactory,
    make_model: Callable[..., Any],
    save_model: Callable[[Any, Path], Path],
    pieces: Any,
) -> Path:
    """A teacher with pieces; students with bytes."""
    root = tmp_path_factory.mktemp("models")
    make_model(1, vocabulary=len(pieces)).save_pretrained(root / "teacher")
    pieces.save_pretrained(root / "teacher")
    for seed, name in enumerate(("undistilled", "finetuned", "distilled")):
        save_model(make_model(seed), root / name)
    return root


@pytest.fixture
def evaluate(bench: Any) -> Callable[[], Path]:
    return partial(bench.run, ROWS, resamples=200)


def test_figures_are_those_that_exist_and_equal_plain_ones(
    evaluate: Callable[[], Path], models: Path, tokenizer: Any, pieces: Any
) -> None:
    """Span KL, bits a byte and agreement again, span by span, in float64 from full logits."""
    from transformers import AutoModelForCausalLM

    data = evaluate()
    found = json.loads((data / "results.json").read_text())
    tokens = ("span_kl", "agreement", "bits_per_byte")
    metrics = {"f1", "em", *tokens, *(f"{name}_answer" for name in tokens)}
    for model in found["models"].values():
        assert metrics <= set(model["metrics"])
        assert not {"kl", "perplexity", "ece"} & set(model["metrics"])
    of_teacher = found["models"]["teacher"]["metrics"]
    assert of_teacher["span_kl"]["value"] == 0.0
    assert of_teacher["agreement"]["value"] == 1.0
    teacher, student = (
        AutoModelForCausalLM.from_pretrained(models / name).double().eval()
        for name in ("teacher", "distilled")
    )
    aligner = Aligner(tokenizer, pieces)
    divergence = agree = spans = nats = teacher_nats = size = 0.0
    for row in ROWS:
        (ours, theirs), aligned = aligner.example(row.turns, 1000)
        logs = []
        for model, side in ((student, ours), (teacher, theirs)):
            with torch.no_grad():
                logs.append(model(torch.tensor([side.ids])).logits[0].log_softmax(-1))
        for span in aligned.spans:
            if not span.first[0]:
                continue
            q, p = (
                sum(float(log[at - 1, side.ids[at]]) for at in range(*tokens))
                for log, side, tokens in zip(
                    logs, (ours, theirs), (span.first, span.second), strict=True
                )
            )
            some, other = math.exp(p), math.exp(q)
            divergence += some * (p - q) + (1 - some) * math.log((1 - some) / (1 - other))
            best = [int(log[tokens[0] - 1].argmax()) for log, tokens in zip(
                logs, (span.first, span.second), strict=True
            )]  # fmt: skip
            texts = [known.text[number] for number, known in zip(best, aligner.words, strict=True)]
            ends = [number in known.ends for number, known in zip(best, aligner.words, strict=True)]
            agree += all(ends) or (texts[0] == texts[1] and not any(ends))
            spans, nats, teacher_nats, size = (
                spans + 1,
                nats - q,
                teacher_nats - p,
                size + span.size,
            )
    own = found["models"]["distilled"]["metrics"]
    assert own["span_kl"]["value"] == pytest.approx(divergence / spans, rel=1e-4)
    assert own["agreement"]["value"] == pytest.approx(agree / spans)
    assert own["bits_per_byte"]["value"] == pytest.approx(nats / size / math.log(2), rel=1e-4)
    assert of_teacher["bits_per_byte"]["value"] == pytest.approx(
        teacher_nats / size / math.log(2), rel=1e-4
    )
    pair = found["differences"]["distilled_minus_finetuned"]
    assert metrics <= set(pair)
    line = json.loads((data / "predictions.jsonl").read_text().splitlines()[-1])
    assert {"span_kl", "spans", "f1"} <= set(line)
    assert "kl" not in line


def test_the_table_names_what_was_measured(evaluate: Callable[[], Path]) -> None:
    report = json.loads((evaluate() / "results.json").read_text())
    header, teacher, *_ = table = comparison.quality(report)
    assert header[1:] == ["span KL", "agreement %", "bits/byte", "F1 %", "EM %"]
    assert teacher[1] == "0"
    assert all(cell != "\N{EN DASH}" for row in table for cell in row)


def test_students_of_two_tokenizers_are_one_clear_error(
    bench_of: Callable[[Path, Path], Any], models: Path, tmp_path: Path
) -> None:
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for name in ("teacher", "undistilled", "distilled"):
        (mixed / name).symlink_to(models / name)
    (mixed / "finetuned").symlink_to(models / "teacher")
    with pytest.raises(ModelError, match="must share a tokenizer"):
        bench_of(tmp_path / "b", mixed).run(ROWS)


def test_two_outcome_kl_by_hand() -> None:
    found = two_outcome_kl(torch.tensor([0.8]).double().log(), torch.tensor([0.5]).double().log())
    assert float(found) == pytest.approx(0.8 * math.log(1.6) + 0.2 * math.log(0.4))
    sure = two_outcome_kl(torch.zeros(1).double(), torch.zeros(1).double())
    assert float(sure) == 0.0


def test_every_model_reads_the_examples_in_its_own_tokens(
    tokenizer: Any, pieces: Any, models: Path
) -> None:
    from potstill.evaluate.encode import encode_examples

    folders = {name: models / name for name in ("teacher", "distilled")}
    encoded, too_long = encode_examples(ROWS, folders, 150)
    assert [one.id for one in encoded.held["teacher"]] == [
        one.id for one in encoded.held["distilled"]
    ]
    assert encoded.held["teacher"][0].encoded == encode_example(pieces, ROWS[0].turns, 150)
    assert encoded.held["distilled"][0].encoded == encode_example(tokenizer, ROWS[0].turns, 150)
    assert len(encoded.spans) == len(encoded.held["teacher"]) == len(ROWS) - len(too_long)


def test_a_teacher_before_its_correction_has_the_teachers_tokens(
    evaluate: Callable[[], Path], models: Path, tmp_path: Path
) -> None:
    (tmp_path / "correct/data").mkdir(parents=True)
    (tmp_path / "correct/data/model").symlink_to(models / "teacher")
    found = json.loads((evaluate() / "results.json").read_text())["models"]
    assert found["uncorrected"]["metrics"]["span_kl"]["value"] == 0.0  # the same weights here
    assert found["uncorrected"]["metrics"]["agreement"]["value"] == 1.0
    assert found["distilled"]["metrics"]["span_kl"]["value"] > 0
