"""A reader of spans: batches change nothing, mistakes are one line."""

from __future__ import annotations

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
