"""A question and its passage as windows of tokens, and characters of the passage as tokens.

In: a fast tokenizer, a question, a passage of any length. Out: `Windows`: token ids of overlapping
pieces that a model can read, each beginning with the question. Knows no model and no score.

    [CLS] question [SEP] passage tokens 0 to 9   [SEP]
    [CLS] question [SEP] passage tokens 6 to 15  [SEP]      (overlap of 4)

Position 0 of a window stands for "the answer is not in here".
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from potstill.errors import InputError, ModelError
from potstill.models.load import quiet

MAX_QUESTION_TOKENS = 64
"""Longer questions are cut, so that a passage has room beside them."""
NOWHERE = 0


@dataclass(frozen=True)
class Window:
    """Token ids and segments. `count` passage tokens stand from position `at` on; the first of
    them is token `first` of the passage."""

    ids: tuple[int, ...]
    segments: tuple[int, ...]
    at: int
    first: int
    count: int

    def place(self, first: int, last: int) -> tuple[int, int]:
        """Positions of the passage's tokens `first` to `last`; (0, 0) if not all are in here."""
        if first < self.first or last >= self.first + self.count:
            return NOWHERE, NOWHERE
        return self.at + first - self.first, self.at + last - self.first


@dataclass(frozen=True)
class Windows:
    """A passage as windows. `offsets`: each passage token's characters, [start, end)."""

    windows: tuple[Window, ...]
    offsets: tuple[tuple[int, int], ...]

    def tokens_of(self, start: int, end: int) -> tuple[int, int] | None:
        """First and last passage token that a character of [start, end) belongs to."""
        first = bisect_right(self.offsets, start, key=lambda one: one[1])
        last = bisect_left(self.offsets, end, key=lambda one: one[0]) - 1
        return (first, last) if first <= last else None


def encode(tokenizer: Any, question: str, passage: str, max_tokens: int, overlap: int) -> Windows:
    """Cut a passage into windows of at most `max_tokens`, neighbours sharing `overlap` tokens.

    Errors: InputError for a question that leaves a passage too little room; ModelError for a
    tokenizer whose windows do not begin with its [CLS].
    """
    question = _shortened(tokenizer, question)
    beside = len(tokenizer(question, "").input_ids)
    if beside + overlap >= max_tokens:
        raise InputError(
            f"A question of {beside} tokens and an overlap of {overlap} leave a window of "
            f"{max_tokens} tokens no room for a passage.",
            "Raise window_tokens, or lower window_overlap.",
        )
    with quiet():
        batch = tokenizer(
            question,
            passage,
            truncation="only_second",
            max_length=max_tokens,
            stride=overlap,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_token_type_ids=True,
        )
    windows: list[Window] = []
    offsets: list[tuple[int, int]] = []
    for number, ids in enumerate(batch["input_ids"]):
        places = [at for at, part in enumerate(batch.sequence_ids(number)) if part == 1]
        found = [tuple(batch["offset_mapping"][number][at]) for at in places]
        first = len(offsets) - overlap if windows else 0
        if ids[0] != tokenizer.cls_token_id or found[: len(offsets) - first] != offsets[first:]:
            raise ModelError(
                "The tokenizer's windows do not begin with its classification token, or do not "
                "overlap as asked, so no answer can be told from them.",
                "Use an encoder such as BERT, DistilBERT, RoBERTa or ELECTRA.",
            )
        at = places[0] if places else len(ids)
        segments = tuple(batch["token_type_ids"][number])
        windows.append(Window(tuple(ids), segments, at, first, len(places)))
        offsets += found[len(offsets) - first :]
    return Windows(tuple(windows), tuple(offsets))


def _shortened(tokenizer: Any, question: str) -> str:
    found = tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)
    offsets: Sequence[tuple[int, int]] = found["offset_mapping"]
    if len(offsets) <= MAX_QUESTION_TOKENS:
        return question
    return question[: offsets[MAX_QUESTION_TOKENS - 1][1]]
