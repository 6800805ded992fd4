"""Whatever the rows: none is lost, no chunk is in two splits, and order does not matter."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.curate import CurateConfig
from potstill.curate.curation import Material
from potstill.curate.curation import curate as curate_material
from potstill.curate.split import assign, leaking
from potstill.records import Chunk, Example, Provenance, Rejected, Turn

WORDS = st.sampled_from("kiln valve K7 warden 400 hours the of is Brannoch log pump lit".split())
SENTENCES = st.lists(WORDS, min_size=1, max_size=12).map(" ".join)


def curate(
    chunks: list[Chunk], rows: list[Example], config: CurateConfig, seed: int
) -> tuple[dict[str, list[Example]], list[Rejected]]:
    done = curate_material(Material(chunks, rows), config, seed)
    return dict(done.kept), done.rejected


@st.composite
def corpora(draw: st.DrawFn) -> tuple[list[Chunk], list[Example]]:
    chunks: list[Chunk] = []
    for document in range(draw(st.integers(1, 3))):
        place = 0
        for number in range(draw(st.integers(1, 6))):
            text = draw(SENTENCES)
            start = max(0, place - draw(st.integers(0, 10)))
            chunks.append(
                Chunk(
                    id=f"{document}.{number}",
                    document=str(document),
                    source="s",
                    start=start,
                    end=start + len(text),
                    tokens=1,
                    text=text,
                )
            )
            place = start + len(text)
    rows = []
    for number in range(draw(st.integers(0, 25))):
        one = draw(st.sampled_from(chunks))
        question, answer = draw(SENTENCES) + "?", draw(SENTENCES)
        turns = (Turn(role="user", content=question), Turn(role="assistant", content=answer))
        rows.append(
            Example(
                id=str(number),
                turns=turns,
                question=question,
                answers=(answer,),
                provenance=Provenance(document=one.document, chunk=one.id),
            )
        )
    return chunks, rows


@settings(deadline=None, max_examples=60)
@given(corpora(), st.integers(0, 5))
def test_input_is_kept_plus_rejected_and_splits_share_no_chunk(
    corpus: tuple[list[Chunk], list[Example]], seed: int
) -> None:
    chunks, rows = corpus
    kept, rejected = curate(chunks, rows, CurateConfig(), seed)
    ids = [row.id for split in kept.values() for row in split] + [one.id for one in rejected]
    assert sorted(ids) == sorted(row.id for row in rows)
    homes = {split: {row.provenance.chunk for row in rows} for split, rows in kept.items()}
    assert homes["train"] & homes["test"] == set()
    assert homes["train"] & homes["validation"] == set()
    assert homes["validation"] & homes["test"] == set()


@settings(deadline=None, max_examples=60)
@given(corpora(), st.integers(0, 5))
def test_no_kept_training_chunk_shares_text_with_a_kept_test_chunk(
    corpus: tuple[list[Chunk], list[Example]], seed: int
) -> None:
    chunks, rows = corpus
    kept, _ = curate(chunks, rows, CurateConfig(), seed)
    spans = {chunk.id: (chunk.document, chunk.start, chunk.end) for chunk in chunks}
    for trained in kept["train"]:
        for tested in [*kept["test"], *kept["validation"]]:
            one, other = spans[trained.provenance.chunk], spans[tested.provenance.chunk]
            assert one[0] != other[0] or one[2] <= other[1] or other[2] <= one[1]


@settings(deadline=None, max_examples=60)
@given(corpora(), st.randoms(use_true_random=False))
def test_the_split_does_not_depend_on_the_order_of_chunks_unless_they_overlap(
    corpus: tuple[list[Chunk], list[Example]], lot: object
) -> None:
    chunks, _ = corpus
    rows = {chunk.id: 3 for chunk in chunks}
    options = {"validation": 0.1, "test": 0.1, "split_by": "document", "seed": 4}
    shuffled = list(chunks)
    lot.shuffle(shuffled)  # type: ignore[attr-defined]
    assert assign(chunks, rows, **options) == assign(shuffled, rows, **options)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=60)
@given(corpora())
def test_three_units_fill_three_splits(corpus: tuple[list[Chunk], list[Example]]) -> None:
    chunks, _ = corpus
    rows = {chunk.id: 3 for chunk in chunks}
    splits = assign(chunks, rows, validation=0.1, test=0.1, split_by="chunk", seed=4)
    assert len(set(splits.values())) == min(3, len(chunks))
    assert set(leaking(chunks, splits)) <= set(splits)
