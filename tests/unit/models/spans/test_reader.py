"""A reader of spans: batches change nothing, mistakes are one line."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from span_models import save_span_model

from potstill import SpanReader
from potstill.errors import InputError, ModelError
from potstill.models.spans.model import begin_span_model, load_span_model, logits_of, longest_window
from potstill.models.spans.reader import ReaderSettings

PAIRS = [
    ("what holds litres", "the boiler of unit holds litres and the keeper notes the time"),
    ("when is it", "the valve opens at bar"),
    ("who", "the keeper notes the time in the log " * 4),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_span_model(tmp_path_factory.mktemp("spans") / "model", spread=0.5)


def test_answers_stand_in_their_passages_whatever_the_batch(folder: Path) -> None:
    reader = SpanReader(folder, ReaderSettings(24, 8, no_answer_threshold=None))
    together = reader.answers(PAIRS)
    for (question, passage), found in zip(PAIRS, together, strict=True):
        assert passage[found.start : found.end] == found.answer != ""
        alone = reader.answer(question, passage)
        assert (alone.start, alone.end) == (found.start, found.end)
        assert alone.score == pytest.approx(found.score, rel=1e-4)
        assert 0 < found.score + found.no_answer < 1.0001


def test_logits_are_those_of_transformers(folder: Path) -> None:
    reader, model = SpanReader(folder), load_span_model(folder)
    windows = [reader.windows(*pair).windows[0] for pair in PAIRS]
    for pair, (starts, ends) in zip(
        PAIRS, logits_of(model, reader.tokenizer, windows, 2), strict=True
    ):
        batch = reader.tokenizer(*pair, return_tensors="pt", truncation=True, max_length=64)
        with torch.no_grad():
            wanted = model(**batch)
        torch.testing.assert_close(starts, wanted.start_logits[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ends, wanted.end_logits[0], rtol=1e-4, atol=1e-4)


def test_a_window_is_no_longer_than_the_model_reads(folder: Path) -> None:
    reader = SpanReader(folder, ReaderSettings(4096))
    assert (
        reader.window_tokens == longest_window(reader.backend.config, reader.tokenizer, 4096) == 64
    )


def test_an_encoder_gets_a_head_that_the_seed_draws(tmp_path: Path) -> None:
    bare = save_span_model(tmp_path / "bare", head=False)
    one, same, other = (begin_span_model(bare, seed) for seed in (3, 3, 4))
    assert torch.equal(one.qa_outputs.weight, same.qa_outputs.weight)
    assert not torch.equal(one.qa_outputs.weight, other.qa_outputs.weight)
    body = one.bert.encoder.layer[0].output.dense.weight
    assert torch.equal(body, other.bert.encoder.layer[0].output.dense.weight)
    with pytest.raises(ModelError, match=r"marks answers: it has no qa_outputs"):
        load_span_model(bare)


def test_a_decoder_and_empty_texts_are_refused(tiny_folder: Path, folder: Path) -> None:
    with pytest.raises(ModelError):
        SpanReader(tiny_folder)
    reader = SpanReader(folder)
    with pytest.raises(InputError, match="question is empty"):
        reader.answer(" ", "the boiler")
    with pytest.raises(InputError, match="passage is empty"):
        reader.answer("what", "\n")


PASSAGES = [
    "the keeper notes the time in the log",
    "the boiler of unit holds litres and is drained every days",
    "the lamp in the north tower is red",
]


def test_of_several_passages_the_span_wins_that_is_likeliest_against_no_answer(
    folder: Path,
) -> None:
    reader = SpanReader(folder)
    for question in ("what holds litres", "where is the red lamp", "who notes the time"):
        told = reader.scored([(question, passage) for passage in PASSAGES])
        margins = [float(one.spans.max()) - one.none for _, one in told]
        found = reader.answer_from(question, PASSAGES, threshold=None)
        assert found.passage == max(range(3), key=lambda n: margins[n])
        assert found.answer.answer == PASSAGES[found.passage][found.answer.start : found.answer.end]
        alone = reader.answer_from(question, [PASSAGES[found.passage]], threshold=None)
        assert (alone.answer.answer, alone.passage) == (found.answer.answer, 0)
        assert alone.answer.score == pytest.approx(found.answer.score)
        none = [math.exp(one.none) for _, one in told]
        assert found.answer.no_answer == pytest.approx(min(none), rel=1e-4)
        assert found.tokens == sum(len(w.ids) for one, _ in told for w in one.windows)


def test_there_is_no_answer_only_if_every_passage_says_so(folder: Path) -> None:
    reader = SpanReader(folder)
    question = "what holds litres"
    told = reader.scored([(question, passage) for passage in PASSAGES])
    margins = sorted(float(one.spans.max()) - one.none for _, one in told)
    one_holds = -(margins[-1] + margins[-2]) / 2  # between the best passage and the second
    found = reader.answer_from(question, PASSAGES, threshold=one_holds)
    assert found.passage is not None
    none = reader.answer_from(question, PASSAGES, threshold=-margins[-1] - 0.01)
    assert (none.passage, none.answer.answer) == (None, "")
    assert none.answer.score == none.answer.no_answer


def test_what_stops_the_reading_stops_it(folder: Path) -> None:
    calls = []

    def before() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        SpanReader(folder).answer_from("who", PASSAGES, before=before)
    assert len(calls) == 2
    with pytest.raises(InputError, match="no passage"):
        SpanReader(folder).answer_from("who", [])
    with pytest.raises(InputError, match="is empty"):
        SpanReader(folder).answer_from("who", ["the log", " "])


def test_several_threads_read_as_one_does(folder: Path) -> None:
    reader = SpanReader(folder, ReaderSettings(24, 8))
    alone = [reader.answer_from(*one) for one in ((q, [p]) for q, p in PAIRS)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(8):
            assert list(pool.map(lambda one: reader.answer_from(one[0], [one[1]]), PAIRS)) == alone
