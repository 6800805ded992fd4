"""Rows of one chunk become conversations: none lost, none added, none across chunks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from potstill.generate.joining import joined
from potstill.records import Example, Provenance, Turn


def row(chunk: int, number: int) -> Example:
    question, answer = f"What is {chunk}.{number}?", f"answer {chunk}.{number}"
    asked = f"Passage {chunk}\n\n{question}"
    return Example(
        id=f"{chunk}-{number}",
        turns=(Turn(role="user", content=asked), Turn(role="assistant", content=answer)),
        question=question,
        answers=(answer,),
        provenance=Provenance(document="d", chunk=str(chunk)),
    )


def test_a_conversation_has_the_passage_once_and_all_exchanges_before() -> None:
    _, _, third, fourth = joined([row(1, n) for n in range(4)], turns=3)
    assert [(turn.role, turn.content) for turn in third.turns] == [
        ("user", "Passage 1\n\nWhat is 1.0?"),
        ("assistant", "answer 1.0"),
        ("user", "What is 1.1?"),
        ("assistant", "answer 1.1"),
        ("user", "What is 1.2?"),
        ("assistant", "answer 1.2"),
    ]
    assert fourth == row(1, 3)


@given(st.lists(st.integers(0, 6), max_size=6), st.integers(1, 5))
def test_every_row_stays_with_its_own_answer_and_chunk(sizes: list[int], turns: int) -> None:
    rows = [row(chunk, n) for chunk, size in enumerate(sizes) for n in range(size)]
    made = list(joined(rows, turns))
    assert len({one.id for one in made}) == len(made) == len(rows)
    for before, after in zip(rows, made, strict=True):
        kept = before.model_copy(update={"id": after.id, "turns": after.turns})
        assert after == kept
        assert after.turns[-1] == before.turns[-1]
        assert len(after.turns) <= 2 * turns
        assert after.turns[0].content.startswith(f"Passage {before.provenance.chunk}\n")
        assert before.question in after.turns[-2].content
    if turns == 1:
        assert made == rows
