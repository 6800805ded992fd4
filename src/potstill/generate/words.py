"""Words as generation compares them: folded, in their simplest form, without the light ones.

In: texts. Out: words. Pure functions. Knows no question, no model.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from itertools import pairwise

from potstill.generate.focus import ASKING, LIGHT

WORDS = re.compile(r"[^\W_]+(?:['\u2019.,/-][^\W_]+)*")
NUMBER = re.compile(r"\d+(?:[.,:/\u2019']\d+|[ \u202f\u00a0]\d{3}(?!\d))*")
THOUSANDS = re.compile(r"[ ,\u2019'\u202f\u00a0](?=\d{3}(?!\d))")
ENDINGS = (("ies", ("y",)), ("es", ("", "e")), ("s", ("",)), ("ed", ("", "e")), ("ing", ("", "e")))
# Scripts that put no space between words: there, pairs of signs stand for words.
UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\u0e00-\u0e7f]+")
SPELT = {
    word: str(number)
    for number, word in enumerate(
        "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
        "sixteen seventeen eighteen nineteen twenty".split(),
        2,
    )
}
TRUTH = frozenset(
    "yes no true false ja nein wahr falsch oui non vrai faux s\u00ed si s\u00ec".split()
)
SHORTEST_STEM = 4
DOUBLED = re.compile(r"([bdfgklmnprt])\1$")  # trimmed: trimm, trim


def normal(text: str) -> str:
    """Lower case, compatibility forms folded, only words and figures, single spaces."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(WORDS.findall(folded))


def forms(word: str) -> list[str]:
    """A word and what it may become in a question: carries -> carry, stored -> store."""
    found = [word]
    if word.islower():
        for ending, others in ENDINGS:
            if word.endswith(ending) and len(word) > len(ending) + 1:
                found += [word[: -len(ending)] + other for other in others]
    elif word[1:].islower():
        found.append(word.lower())
    return found


def content_words(text: str) -> set[str]:
    """The words that carry meaning, in their simplest form."""
    return {
        min(forms(word), key=len) for word in normal(text).split() if word not in LIGHT | ASKING
    }


def foreign_words(question: str, passage: str, vocabulary: Iterable[str]) -> list[str]:
    """Words of a question that neither its passage nor the vocabulary has, in any form."""
    known = {form for word in normal(passage).split() for form in forms(word)}
    known.update(form for word in vocabulary for form in forms(word))
    return [word for word in normal(question).split() if known.isdisjoint(forms(word))]


def repeats(text: str) -> bool:
    """The same three words twice, or a word twice in a row."""
    words = normal(text).split()
    threes = list(zip(words, words[1:], words[2:], strict=False))
    return len(set(threes)) < len(threes) or any(one == two for one, two in pairwise(words))


def tokens(text: str) -> list[str]:
    """Words in order, of any script; where no space parts them, every two neighbouring signs.

    Numbers in words are figures: twelve is 12.
    """
    found: list[str] = []
    for word in (SPELT.get(one, one) for one in normal(text).split()):
        at = 0
        for run in UNSPACED.finditer(word):
            found += [word[at : run.start()]] if run.start() > at else []
            signs = run[0]
            found += [signs[n : n + 2] for n in range(max(1, len(signs) - 1))]
            at = run.end()
        found += [word[at:]] if at < len(word) else []
    return found


def telling(text: str) -> list[str]:
    """`tokens` that tell one text from another: no light words, nothing of one or two letters."""
    return [
        word
        for word in tokens(text)
        if word not in LIGHT
        and word not in ASKING
        and (len(word) > 2 or not word.isascii() or any(sign.isdigit() for sign in word))
    ]


def stem(word: str) -> str:
    """A word without what endings change, of any language with endings; figures stay whole."""
    if any(sign.isdigit() for sign in word) or len(word) <= SHORTEST_STEM:
        return word
    return DOUBLED.sub(r"\1", word[: max(SHORTEST_STEM, round(0.7 * len(word)))])


def same_word(one: str, other: str) -> bool:
    """Whether two words are forms of one word, as far as their beginnings tell."""
    if one == other:
        return True
    if not (one.isalpha() and other.isalpha()):
        return False
    if not set(forms(one)).isdisjoint(forms(other)):
        return True
    shorter, longer = sorted((one, other), key=len)
    return len(shorter) >= SHORTEST_STEM and stem(longer) in (shorter, stem(shorter))


def numbers(text: str) -> set[str]:
    """The figures of a text, in one way of writing: 1,200 and 1 200 are 1200, 3,5 is 3.5."""
    return {THOUSANDS.sub("", found).replace(",", ".") for found in NUMBER.findall(text)}


def spelt(text: str) -> set[str]:
    """The numbers that a text has in words."""
    return {SPELT[word] for word in normal(text).split() if word in SPELT}
