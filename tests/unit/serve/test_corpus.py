"""Passages that come and stay, two orders that become one, and where an answer stands."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.errors import InputError
from potstill.records import Chunk
from potstill.serve import vectors
from potstill.serve.corpus import Corpus, citation
from potstill.serve.retrieval import PassageIndex, fused
from potstill.serve.vectors import Block, Meanings, signs_of

TEXTS = (
    "The kiln at Brannoch burns dried kelp. Its door is opened twice a day.",
    "Valve K7 must be replaced after 400 hours.",
)


def chunk(name: str, text: str, start: int = 0) -> Chunk:
    return Chunk(
        id=name,
        document="d",
        source="h.pdf",
        start=start,
        end=start + len(text),
        pages=(3, 4),
        tokens=1,
        text=text,
    )


def read(file: Path, name: str, work: Path) -> list[Chunk]:
    text = file.read_text()
    if not text.strip():
        raise InputError(f"{name} is empty.")
    return [chunk(f"{name}-0", text)]


def corpus(folder: Path) -> Corpus:
    own = [chunk(str(n), text) for n, text in enumerate(TEXTS)]
    return Corpus(own, folder / "documents", read)


def test_an_added_document_is_found_now_and_after_a_restart(tmp_path: Path) -> None:
    one = corpus(tmp_path)
    file = tmp_path / "new.md"
    file.write_text("The ferry leaves at half past six.")
    assert asyncio.run(one.search("When does the ferry leave?")) is None
    added = asyncio.run(one.add(file, "ferry.md"))
    assert (added.new, added.passages, len(one)) == (True, 1, 3)
    for now in (one, corpus(tmp_path)):
        found = asyncio.run(now.search("When does the ferry leave?"))
        assert found is not None
        assert found.id == "ferry.md-0"
    again = asyncio.run(one.add(file, "other-name.md"))
    assert (again.id, again.new, len(one)) == (added.id, False, 3)
    assert [doc.name for doc in corpus(tmp_path).documents] == ["ferry.md"]


def test_half_a_document_of_a_killed_service_is_not_there(tmp_path: Path) -> None:
    one = corpus(tmp_path)
    file = tmp_path / "new.md"
    file.write_text("The ferry leaves at half past six.")
    added = asyncio.run(one.add(file, "ferry.md"))
    whole = tmp_path / "documents" / added.id
    whole.rename(whole.with_suffix(".part"))
    again = corpus(tmp_path)
    assert (len(again), again.documents) == (2, [])
    assert asyncio.run(again.add(file, "ferry.md")).new


def test_a_document_that_cannot_be_used_leaves_nothing(tmp_path: Path) -> None:
    one = corpus(tmp_path)
    (tmp_path / "blank.md").write_text(" ")
    with pytest.raises(InputError, match="is empty"):
        asyncio.run(one.add(tmp_path / "blank.md", "blank.md"))
    assert len(one) == 2
    assert list((tmp_path / "documents").iterdir()) == []


def test_a_citation_points_at_the_words() -> None:
    passage = chunk("c", TEXTS[1], start=500)
    found = citation(passage, " 400 hours ")
    document = " " * 500 + TEXTS[1]
    assert document[found["answer_start"] : found["answer_end"]] == "400 hours"
    assert document[found["start"] : found["end"]] == found["text"]
    assert (found["source"], found["pages"]) == ("h.pdf", [3, 4])
    for missing in ("four hundred hours", ""):
        assert citation(passage, missing)["answer_start"] is None


@given(st.lists(st.lists(st.integers(0, 9), unique=True), max_size=4))
def test_fused_orders_are_the_sums_of_the_formula(orders: list[list[int]]) -> None:
    def score(number: int) -> float:
        return sum(1 / (60 + order.index(number) + 1) for order in orders if number in order)

    expected = sorted({n for order in orders for n in order}, key=lambda n: (-score(n), n))
    assert [score(n) for n in fused(orders)] == pytest.approx([score(n) for n in expected])
    assert sorted(fused(orders)) == sorted(expected)


class Letters:
    """An encoder whose vectors count letters; notes what it was asked."""

    calls = 0

    def __init__(self, source: str) -> None: ...

    def vectors(self, texts: Sequence[str], on_batch: Any) -> Any:
        Letters.calls += 1
        counts = np.array(
            [[text.lower().count(chr(97 + n)) + 1e-3 for n in range(26)] for text in texts],
            dtype=np.float32,
        ).reshape(len(texts), 26)
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


@pytest.fixture
def letters(monkeypatch: pytest.MonkeyPatch) -> type[Letters]:
    monkeypatch.setattr(vectors, "Encoder", Letters)
    monkeypatch.setattr(vectors, "encoder_digest", lambda source: source)
    Letters.calls = 0
    return Letters


def test_meanings_find_what_shares_no_word(letters: type[Letters], tmp_path: Path) -> None:
    index = PassageIndex([chunk("0", "zzz zz"), chunk("1", "abab")], "letters", tmp_path)
    assert index.search("bbaa")[0].id == "1"
    index.add([chunk("2", "qqqq")])
    assert index.search("q")[0].id == "2"
    assert index.vectors(["ab"]).shape == (1, 26)


def test_the_nearest_are_the_nearest_of_all(letters: type[Letters]) -> None:
    random = np.random.default_rng(7)
    rows = random.normal(size=(500, 8)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    meanings = Meanings("letters", None)
    for part in (rows[:200], rows[200:]):
        meanings.add([Block(part, signs_of(part))])
    for row in rows[:20]:
        exact = sorted(range(500), key=lambda n: -float(rows[n].astype(float) @ row.astype(float)))
        assert meanings.nearest(row[None], 10) == exact[:10]


def test_vectors_are_computed_once_for_the_same_texts(
    letters: type[Letters], tmp_path: Path
) -> None:
    texts = [f"text {n} {'ab' * n}" for n in range(40)]

    def rows(texts: Sequence[str], encoder: str = "letters") -> Any:
        return np.concatenate([one.rows for one in Meanings(encoder, tmp_path).blocks(texts)])

    first, again = rows(texts), rows(texts)
    assert letters.calls == 1
    assert np.array_equal(first, again)
    rows([*texts, "more"])
    rows(texts, "others")
    assert letters.calls == 3
    for file in tmp_path.glob("*.npy"):
        file.write_bytes(b"torn")
    assert np.array_equal(rows(texts), first)


def test_a_long_start_that_is_killed_keeps_its_finished_blocks(
    letters: type[Letters], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "BLOCK", 20)
    texts = [f"{'ab' * n} {'xyz' * (n % 7)}" for n in range(50)]
    Meanings("letters", tmp_path).blocks(texts[:40])
    assert letters.calls == 2
    whole = Meanings("letters", tmp_path).blocks(texts)
    assert letters.calls == 3
    assert [len(one.rows) for one in whole] == [20, 20, 10]
    alone = Letters("letters").vectors(texts, lambda done: None)
    assert np.array_equal(np.concatenate([one.rows for one in whole]), alone)


def test_of_very_many_the_nearest_are_found_by_their_signs_first(
    letters: type[Letters], monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(7)
    rows = random.normal(size=(3000, 72)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    meanings = Meanings("letters", None)
    meanings.add([Block(part, signs_of(part)) for part in np.array_split(rows, 7)])
    asked = rows[:40] + 0.05 * random.normal(size=(40, 72)).astype(np.float32)
    exact = [meanings.nearest(one[None], 10) for one in asked]
    monkeypatch.setattr(vectors, "EXACT", 2999)
    found = [meanings.nearest(one[None], 10) for one in asked]
    kept = sum(len(set(a) & set(b)) for a, b in zip(found, exact, strict=True))
    assert [one[0] for one in found] == [one[0] for one in exact] == list(range(40))
    assert kept >= 0.7 * 400  # of vectors without any order, the hardest case
    assert found != exact  # it is another way
    meanings.remove([0, 2999])
    assert 0 not in meanings.nearest(asked[0][None], 3000)
    assert len(meanings.nearest(asked[0][None], 3000)) == 2998


@given(st.integers(1, 5), st.integers(1, 200), st.integers(0, 9))
def test_signs_are_the_bits_above_zero(count: int, width: int, seed: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(count, width))
    signs = signs_of(rows)
    assert signs.shape == (count, -(-width // 64))
    apart = np.bitwise_count(signs[:1] ^ signs).sum(1)
    assert apart.tolist() == [int(((rows[0] > 0) != (one > 0)).sum()) for one in rows]


def test_few_added_passages_join_the_block_before(letters: type[Letters], tmp_path: Path) -> None:
    meanings = Meanings("letters", tmp_path)
    meanings.add(meanings.blocks([f"own {'a' * n}" for n in range(30)]))
    for letter in "xyz":
        meanings.add(meanings.blocks([letter * 5]))
    assert [len(one.rows) for one in meanings._blocks] == [30, 3]
    (file,) = tmp_path.glob("*.npy")
    meanings.remove([31])
    assert file.exists()
    assert meanings.nearest(meanings.vectors(["yyyy"]), 1) != [31]
    assert meanings.nearest(meanings.vectors(["zzzz"]), 1) == [32]
    meanings.remove([29])
    assert not file.exists()


def test_a_removed_document_is_gone_now_and_after_a_restart(
    tmp_path: Path, letters: type[Letters]
) -> None:
    def opened() -> Corpus:
        own = [chunk(str(n), text) for n, text in enumerate(TEXTS)] * 10
        return Corpus(own, tmp_path / "documents", read, "letters")

    one = opened()
    added = []
    for name in ("ferry", "zebra"):
        file = tmp_path / f"{name}.md"
        file.write_text(f"The {name} leaves at half past six.")
        added.append(asyncio.run(one.add(file, file.name)))
    kept = list((tmp_path / "vectors").glob("*.npy"))
    assert kept
    assert asyncio.run(one.remove("0" * 16)) is None
    removed = asyncio.run(one.remove(added[0].id))
    assert removed is not None
    assert removed.name == "ferry.md"
    for now in (one, opened()):
        assert (now.document(added[0].id), len(now)) == (None, 21)
        best = asyncio.run(now.best("When does the ferry leave?", 50))
        assert "ferry.md-0" not in {one.id for one in best}
        assert "zebra.md-0" in {one.id for one in best}
        assert [doc.name for doc in now.documents] == ["zebra.md"]
    assert all(one.exists() for one in kept)  # the run's own, which hold nothing of it
    again = asyncio.run(one.add(tmp_path / "ferry.md", "ferry.md"))
    assert (again.new, len(one)) == (True, 22)
    assert asyncio.run(one.best("ferry", 1))[0].id == "ferry.md-0"
    asyncio.run(one.remove(added[1].id))
    assert asyncio.run(one.best("ferry", 1))[0].id == "ferry.md-0"


def test_what_a_kill_left_of_a_removal_is_cleared_away(tmp_path: Path) -> None:
    one = corpus(tmp_path)
    file = tmp_path / "new.md"
    file.write_text("The ferry leaves at half past six.")
    added = asyncio.run(one.add(file, "ferry.md"))
    half = tmp_path / "documents" / f"{added.id}.part"
    (tmp_path / "documents" / added.id).rename(half)
    assert len(corpus(tmp_path)) == 2
    assert not half.exists()
