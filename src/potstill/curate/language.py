"""Which language a text is clearly in, and which one rows should be in.

In: text; counts of languages. Out: codes of ISO 639-1. Knows nothing of rows.
"""

from __future__ import annotations

from collections import Counter

from potstill.core.language import likeliest

FEWEST_LETTERS = 30  # fewer say little
SURE = 0.95  # probability of a language before a text counts as being in it
FEWEST_ROWS = 5  # whose languages say what the others should be in
MOST = 0.6  # share of the rows that must agree


def language_of(text: str) -> tuple[str, float]:
    """(code, probability) of the likeliest language; ("", 0.0) for a text without letters enough.

    Errors: MissingExtraError if py3langid is not installed.
    """
    if sum(map(str.isalpha, text)) < FEWEST_LETTERS:
        return "", 0.0
    return likeliest(text, "curate", "Telling languages apart")


def sure_language(text: str) -> str:
    """The language that a text is clearly in; empty where that is not clear."""
    code, probability = language_of(text)
    return code if probability >= SURE else ""


def expected_language(found: Counter[str], of_document: str) -> str:
    """What rows about the same thing should be in; empty: any.

    found: language -> rows that are clearly in it. The language of most, for a teacher may be asked
    to write in another one than the documents'; with few rows, the documents'.
    """
    if found.total() < FEWEST_ROWS:
        return of_document
    code, count = found.most_common(1)[0]
    return code if count >= MOST * found.total() else ""
