"""Rows are judged with a reason, repeats are found, and no split leaks into another."""

from __future__ import annotations

import pytest

from potstill.curate import CurateConfig
from potstill.curate.dedup import Seen
from potstill.curate.filters import judge
from potstill.curate.run import curate
from potstill.curate.split import assign, leaking, overlapping
from potstill.records import Chunk, Example, Provenance, Turn

PASSAGE = (
    "The kiln of Brannoch is lit at 05:40. Valve K7 is replaced after 400 hours. "
    "The warden, Mrs Achterberg, keeps the spare valves in locker 12."
)
CONFIG = CurateConfig()


def chunk(name: str, start: int = 0, text: str = PASSAGE, document: str = "d") -> Chunk:
    return Chunk(
        id=name,
        document=document,
        source="h.pdf",
        start=start,
        end=start + len(text),
        tokens=40,
        text=text,
    )


def row(question: str, answer: str, name: str = "r", chunk_id: str = "c") -> Example:
    return Example(
        id=name,
        turns=(Turn(role="user", content=question), Turn(role="assistant", content=answer)),
        question=question,
        answers=(answer,) if answer else (),
        provenance=Provenance(document="d", chunk=chunk_id),
    )


@pytest.mark.parametrize(
    ("question", "answer", "reason"),
    [
        ("When is the kiln of Brannoch lit?", "At 05:40.", ""),
        ("Who keeps the spare valves?", "The warden, Mrs Achterberg", ""),
        ("?!", "05:40", "empty_question"),
        ("When is the kiln lit?", "", "empty_answer"),
        ("When lit?", "05:40", "question_too_short"),
        ("When " + "is it " * 40 + "lit?", "05:40", "question_too_long"),
        ("When is the kiln lit?", "kiln " + "valve K7 hours " * 50, "answer_too_long"),
        ("Tell me when the kiln is lit.", "05:40", "not_a_question"),
        ("As an AI model, when is the kiln lit?", "05:40", "leaked_instruction"),
        ("When is the kiln lit?", "05:40 <|im_end|>", "leaked_instruction"),
        ("When is the <b>kiln</b> lit?", "05:40", "markup"),
        ("According to the passage, when is the kiln lit?", "05:40", "context_dependent"),
        ("Which valve is mentioned above?", "K7", "context_dependent"),
        ("When is the kiln lit?", "05:40 05:40 05:40 05:40", "repetition"),
        ("When is the kiln lit?", "Every Tuesday in winter", "unsupported"),
        ("Is the kiln of Brannoch a kiln?", "The kiln of Brannoch", "answer_in_question"),
    ],
)
def test_each_filter_has_its_reason(question: str, answer: str, reason: str) -> None:
    verdict = judge(row(question, answer), PASSAGE, CONFIG)
    assert (verdict.keep, verdict.reason) == (not reason, reason)
    assert verdict.keep or verdict.detail


def test_duplicates_are_found_exactly_and_nearly_but_other_figures_are_other_facts() -> None:
    seen = Seen(threshold=0.6)
    first = row("What does alarm code H12 on the north panel mean?", "the kiln is too hot", "a")
    assert seen.repeat_of(first) is None
    seen.add(first)
    exact = row("what does Alarm code H12 on the north panel mean", "The kiln is too hot!", "b")
    near = row("What does the alarm code H12 on the north panel mean?", "the kiln is hot", "c")
    other = row("What does alarm code H18 on the north panel mean?", "the kiln is too hot", "d")
    far = row("Where are the H12 valves kept in winter?", "in the cellar", "e")
    found = seen.repeat_of(exact)
    assert found is not None
    assert (found.of, found.kind) == ("a", "exact_duplicate")
    found = seen.repeat_of(near)
    assert found is not None
    assert (found.of, found.kind) == ("a", "near_duplicate")
    assert 0.6 <= found.similarity < 1
    assert seen.repeat_of(other) is None
    assert seen.repeat_of(far) is None


def test_a_training_row_that_repeats_a_test_row_is_the_one_to_go() -> None:
    chunks = [chunk(f"c{n}", start=1000 * n) for n in range(6)]
    question = "Who keeps the spare valves in locker 12?"
    rows = [row(question, "Mrs Achterberg", f"r{n}", f"c{n}") for n in range(6)]
    kept, rejected = curate(chunks, rows, CONFIG, seed=3)
    assert [len(kept[split]) for split in ("test", "validation", "train")] == [1, 0, 0]
    assert {one.reason for one in rejected} == {"repeats_test"}


def test_documents_are_the_unit_where_there_are_many() -> None:
    chunks = [chunk(f"{d}.{n}", 1000 * n, document=f"d{d}") for d in range(12) for n in range(3)]
    rows = {one.id: 5 for one in chunks}
    splits = assign(chunks, rows, validation=0.1, test=0.1, split_by="auto", seed=1)
    for number in range(12):
        assert len({splits[f"{number}.{n}"] for n in range(3)}) == 1
    assert set(splits.values()) == {"train", "validation", "test"}


def test_overlapping_chunks_lose_only_the_borders() -> None:
    chunks = [chunk(f"c{n:02}", start=50 * n) for n in range(40)]
    assert overlapping(chunks)
    rows = {one.id: 5 for one in chunks}
    splits = assign(chunks, rows, validation=0.1, test=0.1, split_by="auto", seed=1)
    lost = leaking(chunks, splits)
    assert lost
    reach = len(PASSAGE) // 50 + 1
    assert len(lost) <= 3 * reach
    for name, other in lost.items():
        assert splits[name] != splits[other]


def test_a_row_without_a_chunk_is_rejected_and_not_lost() -> None:
    kept, rejected = curate(
        [chunk("c")], [row("Who is there in it?", "K7", "r", "gone")], CONFIG, 0
    )
    assert [one.reason for one in rejected] == ["no_chunk"]
    assert not any(kept.values())
