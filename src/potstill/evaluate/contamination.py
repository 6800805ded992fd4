"""The contamination audit: how much of each test row stands in the training rows.

In: test rows, training rows. Out: an `Overlap` a test row, and their summary. Knows nothing of
models or of how rows were split; it looks at the result.

A text's pieces are its runs of n normalised words (`words`, 8 without change); a shorter text is
one piece. Two figures a test row, each a share of its pieces that some training row has:

    asked   of the question alone
    text    of all turns but the system's: passage, question and answer

Pieces in more than half of the training rows are the prompt's own words and do not count; that
needs at least `FEWEST` training rows. Memory grows with the test rows, not with the training rows.
The measure is that of GPT-3's audit (Brown et al. 2020, appendix C), with shorter runs for short
rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from potstill.core.scoring import normalize_answer
from potstill.records import Example

FEWEST = 20
HIGH = 0.8
"""From this share on a test row counts as seen in training."""
LISTED = 20

Pieces = set[tuple[str, ...]]


@dataclass(frozen=True)
class Overlap:
    """What training rows have of one test row; `asked` is None for a row without a question."""

    id: str
    asked: float | None
    text: float
    nearest: str
    """The training row that has most of it; empty: none has any."""

    @property
    def seen(self) -> bool:
        """Whether the row must be counted as seen in training."""
        return max(self.asked or 0.0, self.text) >= HIGH


def audit(test: Sequence[Example], train: Iterable[Example], words: int) -> list[Overlap]:
    """Look for every test row's pieces in the training rows, in the test rows' order."""
    asked = [_pieces(_words(row.question), words) for row in test]
    whole = [_pieces(_text(row), words) for row in test]
    wanted: dict[tuple[str, ...], list[int]] = {}
    for number, (one, other) in enumerate(zip(asked, whole, strict=True)):
        for piece in one | other:
            wanted.setdefault(piece, []).append(number)
    lengths = sorted({len(piece) for piece in wanted})
    rows: Counter[tuple[str, ...]] = Counter()
    total = 0
    best: dict[int, tuple[int, str]] = {}
    for total, row in enumerate(train, 1):  # noqa: B007 (the count is used after the loop)
        text = _text(row)
        found = {piece for size in lengths for piece in _runs(text, size) if piece in wanted}
        rows.update(found)
        for number, shared in Counter(n for piece in found for n in wanted[piece]).items():
            if shared > best.get(number, (0, ""))[0]:
                best[number] = (shared, row.id)
    common = {one for one, count in rows.items() if total >= FEWEST and 2 * count > total}
    overlaps = []
    for number, example in enumerate(test):
        share = _share(asked[number], rows, common)
        text_share = _share(whole[number], rows, common) or 0.0
        near = best.get(number, (0, ""))[1] if share or text_share else ""
        overlaps.append(Overlap(example.id, share, text_share, near))
    return overlaps


def summary(overlaps: Sequence[Overlap], words: int) -> dict[str, Any]:
    """For the report: counts, means, and the rows that training rows have most of."""
    seen = sorted(
        (one for one in overlaps if one.seen),
        key=lambda one: (-max(one.asked or 0, one.text), one.id),
    )
    asked = [one.asked for one in overlaps if one.asked is not None]
    return {
        "rows": len(overlaps),
        "words": words,
        "high": HIGH,
        "seen": len(seen),
        "untouched": sum(not (one.asked or one.text) for one in overlaps),
        "mean_asked": sum(asked) / len(asked) if asked else None,
        "mean_text": sum(one.text for one in overlaps) / len(overlaps),
        "most": [asdict(one) for one in seen[:LISTED]],
    }


def _text(row: Example) -> list[str]:
    return _words("\n".join(turn.content for turn in row.turns if turn.role != "system"))


def _words(text: str) -> list[str]:
    return normalize_answer(text).split()


def _runs(words: Sequence[str], size: int) -> Iterable[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(size)), strict=False)


def _pieces(words: Sequence[str], size: int) -> Pieces:
    return set(_runs(words, min(size, len(words)))) if words else set()


def _share(pieces: Pieces, rows: Counter[tuple[str, ...]], common: Pieces) -> float | None:
    own = pieces - common
    return sum(piece in rows for piece in own) / len(own) if own else None
