"""Which language a document is in.

In: a text. Out: an ISO 639-1 code, or "" where the text is too short or the answer unsure.
"""

from __future__ import annotations

from potstill.core.language import likeliest

ENOUGH_LETTERS = 40
SAMPLE = 4000
"""Characters looked at, from three places of the text: its beginning may be a foreign title."""
SURE = 0.6


def language_of(text: str) -> str:
    """The language's code, such as en; "" if unknown. Errors: MissingExtraError."""
    if sum(map(str.isalpha, text[:SAMPLE])) < ENOUGH_LETTERS:
        return ""
    third = SAMPLE // 3
    sample = text
    if len(text) > SAMPLE:
        middle = len(text) // 2
        sample = " ".join((text[:third], text[middle : middle + third], text[-third:]))
    sample = " ".join(sample.split())
    code, probability = likeliest(sample, "documents", "Noting a document's language")
    return code if probability >= SURE and len(code) == 2 else ""
