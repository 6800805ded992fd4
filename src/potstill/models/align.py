"""Two tokenizers on one conversation: which tokens of the one stand for which of the other.

In: two tokenizers, the turns of one example. Out: `Aligned`: spans, the pieces of the turns' own
words between places where both tokenizers have a token boundary, and how much of the words they
cover. Knows nothing of models or losses. Does not import torch.

    words of the turns    The boiler of unit 7 ...          offsets are those of its bytes
    one tokenizer         The| bo|iler| of| unit| |7|
    the other             The| boil|er| of| unit| 7|
    spans                 The| boiler   | of| unit| 7  |

What a template or a tokenizer adds has no counterpart and is outside of spans. Two exceptions:
white space of the template that a tokenizer puts into one token with the first or last word is
taken for a part of that word; and the tokens that end the answer correspond, a span without a byte,
so that a student learns from its teacher where to stop.

Offsets are counted over the tokens' true bytes. A tokenizer's own offsets are of no use for it:
they give every token of a character that is split over several the whole character.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from potstill.errors import ModelError
from potstill.models.chat import EncodedExample, Rendered, encode_example, render_example
from potstill.records import Turn

RESYNC_BYTES, RESYNC_TOKENS, PROBE_BYTES = 96, 12, 6
"""Where a tokenizer changed the text: how far, and by how many equal bytes, it is found again."""


@dataclass(frozen=True)
class Span:
    """Tokens `first[0]:first[1]` of one tokenizer's ids and `second[0]:second[1]` of the other's.

    They stand for the same bytes. `leads`: white space of the template that each side's first
    token holds before them.
    """

    first: tuple[int, int]
    second: tuple[int, int]
    size: int
    """Of the text, in bytes."""
    answer: bool
    leads: tuple[bytes, bytes] = (b"", b"")

    @property
    def predicted(self) -> bool:
        """Whether something comes before it on both sides: a row's first token is not predicted."""
        return self.first[0] > 0 and self.second[0] > 0


@dataclass(frozen=True)
class Aligned:
    """One conversation read by two tokenizers. `size`: bytes of the words that both ids hold."""

    spans: tuple[Span, ...]
    size: int

    @property
    def share(self) -> float:
        """Of the bytes, those within spans."""
        return sum(span.size for span in self.spans) / self.size if self.size else 0.0


@dataclass(frozen=True)
class Words:
    """What each token of a vocabulary stands for."""

    text: tuple[bytes | None, ...]
    """A token's bytes, by id; None: an id that no token has."""
    special: frozenset[int]
    """Tokens that are no text, such as BOS."""
    unknown: int | None
    """The one that stands for any text that the tokenizer has no token for."""
    ends: frozenset[int]
    """Those that end an answer."""


def words_of(tokenizer: Any) -> Words:
    """The bytes of every token. A special token's are its name's.

    Known: byte-level BPE (the alphabet of GPT-2), and SentencePiece's pieces, with their sign for a
    space and bytes such as <0x0A>. Errors: ModelError for another kind of tokenizer.
    """
    end = tokenizer.eos_token_id
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    decoder = state.get("decoder") or {}
    parts = decoder["decoders"] if decoder.get("type") == "Sequence" else [decoder]
    kinds = {part.get("type") for part in parts}
    vocabulary = state["model"]["vocab"]
    if isinstance(vocabulary, list):  # Unigram: pieces with their scores, in the order of ids
        vocabulary = {piece: number for number, (piece, _) in enumerate(vocabulary)}
    added = {one["id"]: one for one in state["added_tokens"]}
    size = 1 + max([*vocabulary.values(), *added])
    text: list[bytes | None] = [None] * size
    for piece, number in vocabulary.items():
        text[number] = _piece_bytes(piece, kinds, parts)
    special = {number for number, one in added.items() if one["special"]}
    for number, one in added.items():
        text[number] = one["content"].encode()
    unknown = state["model"].get("unk_token") or state["model"].get("unk_id")
    if isinstance(unknown, str):
        unknown = vocabulary.get(unknown)
    return Words(tuple(text), frozenset(special), unknown, frozenset(() if end is None else (end,)))


def _piece_bytes(piece: str, kinds: set[Any], parts: Sequence[Any]) -> bytes:
    if "ByteLevel" in kinds:
        alphabet = _byte_alphabet()
        if all(character in alphabet for character in piece):
            return bytes(alphabet[character] for character in piece)
        return piece.encode()
    if not kinds & {"Replace", "Metaspace", "ByteFallback"}:
        raise ModelError(
            f"The tokenizer's tokens cannot be read as bytes (decoder: {sorted(map(str, kinds))}).",
            "Byte-level BPE and SentencePiece tokenizers can be aligned; use such a model.",
        )
    if "ByteFallback" in kinds and len(piece) == 6 and piece[:3] == "<0x" and piece[5] == ">":
        return bytes([int(piece[3:5], 16)])
    for part in parts:
        if part["type"] == "Metaspace":
            piece = piece.replace(part["replacement"], " ")
        elif part["type"] == "Replace" and "String" in part["pattern"]:
            piece = piece.replace(part["pattern"]["String"], part["content"])
    return piece.encode()


@lru_cache(maxsize=1)
def _byte_alphabet() -> dict[str, int]:
    """GPT-2's: printable bytes stand for themselves, the others for characters from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    found = {chr(byte): byte for byte in plain}
    return found | {chr(256 + place): byte for place, byte in enumerate(others)}


def same_bytes(
    words: tuple[Words, Words], ids: tuple[int, int], leads: tuple[bytes, bytes]
) -> bool:
    """Whether a token of either vocabulary is the same text as the other's, or both end an answer.

    leads: white space that each begins with and the other need not have.
    """
    ends = [number in known.ends for number, known in zip(ids, words, strict=True)]
    if any(ends):
        return all(ends)
    one, other = (
        (known.text[number] or b"").removeprefix(lead)
        for number, known, lead in zip(ids, words, leads, strict=True)
    )
    return bool(one) and one == other


def token_boundaries(ids: Sequence[int], words: Words, text: bytes) -> list[int | None]:
    """Where in `text` each token begins, and the last ends: one more than ids; None: unknown.

    A special token that does not stand in the text has no length. Where the tokenizer changed the
    text (another Unicode form, a space put before it), the boundaries within what it changed are
    unknown, and those after it are found again.
    """
    found: list[int | None] = [0]
    at, place = 0, 0
    while place < len(ids):
        number = ids[place]
        own = words.text[number] if number < len(words.text) else None
        if own and text.startswith(own, at):
            at += len(own)
        elif number in words.special and number != words.unknown:
            pass
        elif own and own[:1] == b" " and text.startswith(own[1:], at):
            at += len(own) - 1  # the space that SentencePiece puts before a text
        else:
            changed, at = _resynchronised(ids, place, words, text, at)
            found += [None] * (changed - 1)
            place += changed - 1
            if at < 0:
                return found + [None] * (len(ids) + 1 - len(found))
        found.append(at)
        place += 1
    return found


def _resynchronised(
    ids: Sequence[int], place: int, words: Words, text: bytes, at: int
) -> tuple[int, int]:
    """How many tokens stand for changed text, and where it ends; (1, -1) if it is not found."""
    best: tuple[int, int] | None = None
    for count in range(1, min(RESYNC_TOKENS, len(ids) - place) + 1):
        probe = b""
        for number in ids[place + count :]:
            if len(probe) >= PROBE_BYTES or number in words.special:
                break
            probe += words.text[number] or b""
        whole = place + count == len(ids)
        if not probe and not whole:
            continue
        # Nothing is left behind: what follows is a special token's name, or the text's end.
        where = text.find(probe[: 2 * PROBE_BYTES], at, at + RESYNC_BYTES) if probe else len(text)
        if where >= 0 and (best is None or where - at + count < best[1] - at + best[0]):
            best = (count, where)
    return best or (1, -1)


@dataclass(frozen=True)
class _Side:
    """Of one tokenizer and one turn: which token begins and which ends at an offset."""

    begins: dict[int, int]
    ends: dict[int, int]
    lead: bytes
    covered: int
    """Bytes of the turn that the ids hold; fewer than `size` where they are cut off."""
    size: int
    lost: bool
    """Whether the tokenizer changed a text so far that it was not found again: what comes after is
    held, and aligned with nothing."""


def _sides(
    ids: Sequence[int], words: Words, rendered: Rendered, boundaries: Sequence[int | None]
) -> Iterator[_Side]:
    """One a turn."""
    text = rendered.text.encode()
    lost = boundaries[-1] is None
    reached = len(text) if boundaries[-1] is None else boundaries[-1]
    for start, end in rendered.contents:
        first, last = (len(rendered.text[:place].encode()) for place in (start, end))
        begins: dict[int, int] = {}
        ends: dict[int, int] = {}
        lead = b""
        for place in range(len(ids)):
            left, right = boundaries[place], boundaries[place + 1]
            if left is not None and left < last and (right is None or right > max(left, first)):
                if left >= first:
                    begins[left - first] = place
                elif right is not None and not text[left:first].strip():
                    begins[0], lead = place, text[left:first]
            if right is not None and right > first and (left is None or left < right):
                if right <= last:
                    ends[right - first] = place + 1
                elif left is not None and left < last and not text[last:right].strip():
                    ends[last - first] = place + 1
        yield _Side(begins, ends, lead, max(0, min(last, reached) - first), last - first, lost)


class Aligner:
    """Aligns what two tokenizers make of the same conversations.

    Errors: ModelError of `words_of`.
    """

    def __init__(self, first: Any, second: Any) -> None:
        self.tokenizers = (first, second)
        self.words = (words_of(first), words_of(second))

    def example(self, turns: Sequence[Turn], limit: int) -> tuple[list[EncodedExample], Aligned]:
        """`encode_example` of both sides, each cut at `limit` tokens, and their alignment.

        Errors: ModelError of `render_example`, InputError and ModelError of `encode_example`.
        """
        encoded = [encode_example(one, turns, limit) for one in self.tokenizers]
        rendered = [render_example(one, turns) for one in self.tokenizers]
        return encoded, align_ids([one.ids for one in encoded], self.words, rendered)

    def text(self, ids: Sequence[Sequence[int]], text: str) -> Aligned:
        """Both sides' ids of a bare text, in which nothing is an answer."""
        start = len(text) - len(text.lstrip())
        rendered = Rendered(text, ((start, start + len(text.strip())),))
        found = align_ids(ids, self.words, [rendered, rendered])
        return Aligned(tuple(replace(one, answer=False) for one in found.spans), found.size)


def align_ids(
    ids: Sequence[Sequence[int]], words: Sequence[Words], rendered: Sequence[Rendered]
) -> Aligned:
    """Align both sides' ids, of which each stands for its own rendering of the same turns."""
    sides = []
    for own, known, shown in zip(ids, words, rendered, strict=True):
        boundaries = token_boundaries(own, known, shown.text.encode())
        sides.append(list(_sides(own, known, shown, boundaries)))
    spans: list[Span] = []
    total = 0
    turns = len(sides[0])
    for turn, (one, other) in enumerate(zip(*sides, strict=True)):
        answer = turn == turns - 1
        begins = sorted(one.begins.keys() & other.begins.keys())
        ends = one.ends.keys() & other.ends.keys()
        common = sorted(ends)
        covered = min(one.covered, other.covered)
        lost = one.lost or other.lost
        if covered < one.size and not lost:  # cut off: the last boundary's text may go on
            covered = max(ends, default=0)
        total += covered
        place = 0
        for position, start in enumerate(begins):
            following = begins[position + 1] if position + 1 < len(begins) else None
            while place < len(common) and common[place] <= start:
                place += 1
            if place == len(common):
                break
            end = common[place]
            if following is not None and following < end:
                continue  # boundaries that begin here on both sides but end what came before on one
            leads = (one.lead, other.lead) if start == 0 else (b"", b"")
            spans.append(
                Span(
                    (one.begins[start], one.ends[end]),
                    (other.begins[start], other.ends[end]),
                    end - start,
                    answer,
                    leads,
                )
            )
        if answer and common:
            places = one.ends[common[-1]], other.ends[common[-1]]
            if all(
                place < len(own) and own[place] in known.ends
                for place, own, known in zip(places, ids, words, strict=True)
            ):
                whole = [(place, place + 1) for place in places]
                spans.append(Span(whole[0], whole[1], 0, True))
    return Aligned(tuple(spans), total)
