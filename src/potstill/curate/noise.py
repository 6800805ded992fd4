"""Typing errors as people make them: the same question, slightly misspelt.

In: a text or a row, a seed. Out: the same with typing errors. The answer is never touched, nor
are words of the question that the answer or a choice needs. Knows nothing of splits.

Each error is one keystroke in one word: a neighbouring key of the keyboard, two letters swapped,
one left out, one doubled. Which words and which errors is drawn by lot from the seed alone.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from random import Random

from potstill.curate.rewriting import with_question
from potstill.curate.text import COMMON, words
from potstill.records import Example, short_id

KEYS = ("1234567890", "qwertyuiop", "asdfghjkl", "zxcvbnm")
TOKEN = re.compile(r"\[[A-Z_]+\]|[^\W_]+")  # what masks personal data is no word
SHORTEST = 3  # letters; an error in a shorter word leaves too little of it


def _neighbours() -> dict[str, str]:
    """Key -> the keys that touch it; rows are shifted by about half a key."""
    touching: dict[str, set[str]] = {}
    for row, keys in enumerate(KEYS):
        for place, key in enumerate(keys):
            around = touching.setdefault(key, set())
            around.update(keys[max(0, place - 1) : place] + keys[place + 1 : place + 2])
            if row + 1 < len(KEYS):
                for below in KEYS[row + 1][max(0, place - 1) : place + 1]:
                    around.add(below)
                    touching.setdefault(below, set()).add(key)
    return {
        key: "".join(sorted(one for one in around if one.isdigit() == key.isdigit()))
        for key, around in touching.items()
    }


NEIGHBOURS = _neighbours()


def with_typos(
    text: str,
    rate: float,
    lot: Random,
    *,
    numbers: bool = False,
    spared: Collection[str] = (),
) -> str:
    """The text with about `rate` errors a word, at least one where any word can take one.

    No word gets two. Left alone are words below three letters, words with digits unless
    `numbers`, and those of `spared` (lower-case).
    """
    found = list(TOKEN.finditer(text))
    able = [
        one
        for one in found
        if len(one[0]) >= SHORTEST
        and not one[0].startswith("[")
        and (numbers or not any(sign.isdigit() for sign in one[0]))
        and one[0].casefold() not in spared
    ]
    wanted = min(len(able), max(1, round(rate * len(found))))
    for one in sorted(lot.sample(able, wanted), key=lambda match: -match.start()):
        text = text[: one.start()] + mistyped(one[0], lot) + text[one.end() :]
    return text


def mistyped(word: str, lot: Random) -> str:
    """The word with one error, never equal to it."""
    errors = [_neighbour, _swap, _drop, _double]
    lot.shuffle(errors)
    for error in errors:
        changed = error(word, lot)
        if changed != word:
            return changed
    return word + word[-1]


def _neighbour(word: str, lot: Random) -> str:
    places = [place for place, sign in enumerate(word) if sign.lower() in NEIGHBOURS]
    if not places:
        return word
    place = lot.choice(places)
    key = lot.choice(NEIGHBOURS[word[place].lower()])
    return word[:place] + (key.upper() if word[place].isupper() else key) + word[place + 1 :]


def _swap(word: str, lot: Random) -> str:
    places = [place for place in range(len(word) - 1) if word[place] != word[place + 1]]
    if not places:
        return word
    place = lot.choice(places)
    return word[:place] + word[place + 1] + word[place] + word[place + 2 :]


def _drop(word: str, lot: Random) -> str:
    place = lot.randrange(len(word))
    return word[:place] + word[place + 1 :]


def _double(word: str, lot: Random) -> str:
    place = lot.randrange(len(word))
    return word[: place + 1] + word[place:]


def typo_variant(
    example: Example, number: int, rate: float, seed: int, *, numbers: bool = False
) -> Example | None:
    """Variant `number` of a row, with errors in its question; None where none can be made."""
    lot = Random(f"{seed}/{example.id}/{number}")
    needed = {word for text in (*example.answers, *example.options) for word in words(text)}
    question = with_typos(example.question, rate, lot, numbers=numbers, spared=needed - COMMON)
    if question == example.question:
        return None
    return with_question(
        example,
        question,
        id=short_id(example.id, "typo", str(number)),
        provenance=example.provenance.model_copy(update={"parent": example.id, "variant": "typo"}),
    )
