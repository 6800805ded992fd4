"""Stops a reply that goes round in circles, as small models under greedy decoding sometimes do.

In: pieces of text as they are written. Out: the same pieces, until the text ends in a loop.
Changes no probability: a penalty on repeated tokens would also punish words that an answer
rightly takes from its passage. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

LONGEST_LOOP = 80
FEWEST_ROUNDS = 4
SHORTEST_REPETITION = 16
SHORTEST_RULE = 200
"""Of signs alone: leader dots, rules and table borders are no loops."""


def ends_in_loop(text: str) -> bool:
    """Whether the text ends in the same 1 to 80 characters at least four times in a row, at least
    sixteen characters in all; two hundred if none of them is a letter or a figure."""
    for length in range(1, min(LONGEST_LOOP, len(text) // FEWEST_ROUNDS) + 1):
        words = any(sign.isalnum() for sign in text[-length:])
        shortest = SHORTEST_REPETITION if words else SHORTEST_RULE
        rounds = max(FEWEST_ROUNDS, -(-shortest // length))
        if len(text) >= rounds * length and text.endswith(text[-length:] * rounds):
            return True
    return False


class UntilLoop:
    """Iterates over pieces; `looped` says afterwards whether a loop ended it."""

    def __init__(self, pieces: Iterable[str]) -> None:
        self._pieces = pieces
        self.looped = False

    def __iter__(self) -> Iterator[str]:
        text = ""
        for piece in self._pieces:
            yield piece
            text = (text + piece)[-(FEWEST_ROUNDS + 1) * LONGEST_LOOP - len(piece) :]
            if ends_in_loop(text):
                self.looped = True
                return
