"""Chunks cover their text, fit their limits and say truthfully where they stand."""

from __future__ import annotations

import re
from itertools import pairwise

from hypothesis import example, given, settings
from hypothesis import strategies as st

from potstill.ingest.chunking import chunk_spans
from potstill.ingest.cleaning import assemble, plain_blocks
from potstill.ingest.content import PageText

WORDS = st.sampled_from(
    [
        "kelp",
        "tunnel",
        "68 °C,",
        "ends.",
        "Heading",
        "a-b",
        "(x)",
        "naïve",
        "蒸留器",
        "🙂",
        "|",
        "—",
    ]
)
SPACES = st.sampled_from([" ", "  ", "\n", "\n\n", "\n \n", "\t", "\r\n", "\n\n\n"])
TEXTS = st.lists(st.tuples(WORDS, SPACES), max_size=120).map(
    lambda pairs: "".join(word + space for word, space in pairs)
)


def count(text: str) -> int:
    """Words and marks; like a real tokenizer it is not additive: white space costs nothing."""
    return len(re.findall(r"\w+|[^\w\s]", text))


def count_bytes(text: str) -> int:
    return len(text.encode())


def without(text: str, spans: list[tuple[int, int]]) -> str:
    """What no span covers."""
    covered = set()
    for start, end in spans:
        covered.update(range(start, end))
    return "".join(c for position, c in enumerate(text) if position not in covered)


@given(
    TEXTS,
    st.integers(8, 60),
    st.floats(0, 0.9),
    st.sampled_from([count, count_bytes]),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
@example("a" * 300, 20, 0.5, count_bytes, True)
@example("🙂🙂🙂🙂🙂🙂", 17, 0.12, count_bytes, True)
@example("Heading\n\n" * 40, 8, 0.5, count, True)
def test_chunks_cover_the_text_within_their_limits(
    text: str, size: int, share: float, counter: object, sections: bool
) -> None:
    assert callable(counter)
    overlap = int(size * share)
    spans = chunk_spans(text, counter, size, overlap, sections)
    assert not without(text, spans).strip()
    for start, end in spans:
        assert 0 <= start < end <= len(text)
        assert counter(text[start:end]) <= size
        assert text[start:end] == text[start:end].strip()
    for before, after in pairwise(spans):
        assert before[0] < after[0]
        assert before[1] < after[1]
        if after[0] < before[1]:
            assert counter(text[after[0] : before[1]]) <= overlap


@given(TEXTS)
@settings(max_examples=100, deadline=None)
def test_plain_text_keeps_every_word(text: str) -> None:
    joined = "\n\n".join(plain_blocks(text))
    squeezed = re.sub(r"\s+", "", text)
    assert re.sub(r"\s+", "", joined) == squeezed


BLOCKS = st.lists(
    st.sampled_from(["Title", "goes on here.", "A long line of prose that breaks off with a tem-",
                     "perature", "a | b\nc | d", "x"]),
    max_size=4,
)  # fmt: skip


@given(st.lists(BLOCKS, max_size=5))
@settings(max_examples=150, deadline=None)
def test_page_spans_are_in_order_and_cover_the_text(pages: list[list[str]]) -> None:
    texts = [PageText(number, blocks) for number, blocks in enumerate(pages, 1)]
    text, spans = assemble(texts, set())
    assert not without(text, [(span.start, span.end) for span in spans]).strip()
    for before, after in pairwise(spans):
        assert before.end <= after.start
        assert before.number < after.number
    assert all(0 <= span.start <= span.end <= len(text) for span in spans)
    kept = re.sub(r"[\s-]", "", text)
    assert kept == re.sub(r"[\s-]", "", "".join(block for page in pages for block in page))
