"""Rows are judged with a reason, repeats are found, and no split leaks into another."""

from __future__ import annotations

import pytest

from potstill.curate import CurateConfig
from potstill.curate.curation import Curated, Material
from potstill.curate.curation import curate as curate_material
from potstill.curate.dedup import Text, repeats
from potstill.curate.filters import Surroundings, judge
from potstill.curate.split import assign, leaking, overlapping
from potstill.curate.text import words
from potstill.records import Chunk, Example, Provenance, Rejected, Turn

PASSAGE = (
    "The kiln of Brannoch is lit at 05:40. Valve K7 is replaced after 400 hours. "
    "The warden, Mrs Achterberg, keeps the spare valves in locker 12."
)
CONFIG = CurateConfig()


def curate(
    chunks: list[Chunk], rows: list[Example], config: CurateConfig, seed: int
) -> tuple[dict[str, list[Example]], list[Rejected]]:
    done: Curated = curate_material(Material(chunks, rows), config, seed)
    return dict(done.kept), done.rejected


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
        ("They say the kiln is lit at dawn.", "05:40", "not_a_question"),
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
    verdict = judge(row(question, answer), Surroundings(CONFIG, PASSAGE))
    assert (verdict.keep, verdict.reason) == (not reason, reason)
    assert verdict.keep or verdict.detail


def texts(*rows: tuple[str, str]) -> list[Text]:
    return [Text(tuple(words(f"{asked} {said}")), str(n)) for n, (asked, said) in enumerate(rows)]


def test_duplicates_are_found_exactly_and_nearly_but_other_figures_are_other_facts() -> None:
    found = repeats(
        texts(
            ("What does alarm code H12 on the north panel mean?", "the kiln is too hot"),
            ("what does Alarm code H12 on the north panel mean", "The kiln is too hot!"),
            ("What does the alarm code H12 on north panel mena?", "the kiln is too hot"),
            ("What does alarm code H18 on the north panel mean?", "the kiln is too hot"),
            ("Where are the H12 valves kept in winter?", "in the cellar"),
        ),
        threshold=0.8,
    )
    assert [one and (one.of, one.exact) for one in found] == [
        None, (0, True), (0, False), None, None
    ]  # fmt: skip


def test_a_training_row_that_repeats_a_test_row_is_the_one_to_go() -> None:
    chunks = [chunk(f"c{n}", start=1000 * n) for n in range(6)]
    question = "Who keeps the spare valves in locker 12?"
    rows = [row(question, "Mrs Achterberg", f"r{n}", f"c{n}") for n in range(6)]
    kept, rejected = curate(chunks, rows, CONFIG, seed=3)
    assert [len(kept[split]) for split in ("test", "validation", "train")] == [1, 0, 0]
    assert {one.reason for one in rejected} == {"repeats_test"}
    assert {one.detail for one in rejected} == {f"of row {kept['test'][0].id}, similarity 1.00"}


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
