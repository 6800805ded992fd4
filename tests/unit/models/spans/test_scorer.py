"""A language model's probabilities of spans, against whole forward passes one span at a time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from potstill.models.chat import encode_example
from potstill.models.load import load_model, load_tokenizer
from potstill.models.spans.rows import SpanRow
from potstill.models.spans.scorer import SpanScorer, refusal_of
from potstill.records import Example, Provenance, Turn

PASSAGE = "The boiler of unit 7 holds 1250 litres, e.g. at 08:45.\nThe keeper (Ann) notes the time."
DECLINES = "The passage does not say."


def row(name: str, question: str, answer: str | None) -> SpanRow:
    said = answer or DECLINES
    turns = (
        Turn(role="user", content=f"{PASSAGE}\n\n{question}"),
        Turn(role="assistant", content=said),
    )
    example = Example(
        id=name,
        kind="qa" if answer else "refusal",
        turns=turns,
        question=question,
        answers=(said,),
        provenance=Provenance(document="d", chunk="c"),
    )
    start = PASSAGE.index(answer) if answer else None
    end = None if start is None or answer is None else start + len(answer)
    return SpanRow(name, question, PASSAGE, start, end, example)


ROWS = [
    row("a", "How many litres?", "1250 litres"),
    row("b", "Who notes the time?", "Ann"),
    row("c", "How old is the boiler?", None),
]


@pytest.fixture(scope="module", params=["chat template", "plain form"])
def teacher(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, make_student: Any
) -> tuple[Any, Any]:
    folder = tmp_path_factory.mktemp("teacher") / "model"
    template = {} if request.param == "chat template" else {"template": None}
    made: Path = make_student(folder, seed=5, **template)
    return load_model(made), load_tokenizer(made)


def slowly(model: Any, tokenizer: Any, asked: SpanRow, text: str) -> float:
    """log P of a text and of the end of the turn after it, by one pass over all of its tokens."""
    turns = (*asked.example.turns[:-1], Turn(role="assistant", content=text))
    encoded = encode_example(tokenizer, turns, 10_000)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([encoded.ids])).logits[0].double()
    steps = torch.log_softmax(logits, -1)[:-1].gather(1, torch.tensor(encoded.ids[1:])[:, None])
    return float(steps[encoded.answer_start - 1 :].sum())


def test_every_span_has_the_probability_of_its_own_answer(teacher: tuple[Any, Any]) -> None:
    model, tokenizer = teacher
    scorer = SpanScorer(model, tokenizer, starts=4, longest_words=3, refusal=refusal_of(ROWS))
    found = {one.id: one for one in scorer.marks(ROWS)}
    assert set(found) == {"a", "b", "c"}
    checked = 0
    for asked in ROWS:
        marks = found[asked.id]
        assert marks.none == pytest.approx(slowly(model, tokenizer, asked, DECLINES), abs=1e-3)
        for (start, end), log_p in zip(marks.spans, marks.log_p, strict=True):
            text = PASSAGE[start:end]
            assert text == text.strip()
            assert len(text.split()) <= 3
            # A text alone may be cut into other tokens than as the beginning of a longer one.
            alone = tokenizer(text).input_ids
            if alone == tokenizer(PASSAGE[start:]).input_ids[: len(alone)]:
                wanted = slowly(model, tokenizer, asked, text)
                assert log_p == pytest.approx(wanted, abs=1e-3), text
                checked += 1
    assert checked >= 10


def test_the_most_probable_starts_are_tried_and_always_the_rows_own(
    teacher: tuple[Any, Any],
) -> None:
    model, tokenizer = teacher
    few = SpanScorer(model, tokenizer, starts=2, longest_words=2)
    asked = few.prompted(ROWS[0])
    assert asked is not None
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([asked.prompt])).logits[0, -1]
    log_p = torch.log_softmax(logits.float(), -1)
    tried = few.continuations(asked, log_p)
    own = ROWS[0].start
    assert own in {one.start for one in tried}
    every = SpanScorer(model, tokenizer, starts=256, longest_words=2).continuations(asked, log_p)
    values = {one.start: float(log_p[one.ids[0]]) for one in every}
    best = sorted(values.values(), reverse=True)[:2]
    assert [values[one.start] for one in tried[:2]] == pytest.approx(best)
    assert all(start == 0 or not PASSAGE[start - 1].isalnum() for start in values)


def test_a_prompt_longer_than_the_model_reads_teaches_nothing(teacher: tuple[Any, Any]) -> None:
    model, tokenizer = teacher
    scorer = SpanScorer(model, tokenizer, starts=2, longest_words=2)
    scorer.window = 40
    marks = list(scorer.marks(ROWS[:1]))
    assert marks[0].spans == ()


def test_all_probabilities_are_of_different_answers(teacher: tuple[Any, Any]) -> None:
    """Different texts are different outcomes: together no more than one, whatever is tried."""
    model, tokenizer = teacher
    scorer = SpanScorer(model, tokenizer, starts=256, longest_words=4)
    (marks,) = scorer.marks(ROWS[:1])
    by_text: dict[str, float] = {}
    for (start, end), log_p in zip(marks.spans, marks.log_p, strict=True):
        by_text[PASSAGE[start:end]] = math.exp(log_p)
    assert 0 < sum(by_text.values()) <= 1.0
    assert len(set(marks.spans)) == len(marks.spans)
