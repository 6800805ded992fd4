"""Which language a text is in, noted with each document.

In: a text. Out: an ISO 639-1 code, or "" where the text is too short or the answer unsure.
py3langid: a few megabytes, offline, 97 languages, no pickle inside. lingua is a little better on
single words and a hundred times as large; documents are longer than words.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from potstill.core.extras import require

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
    found: str = _identifier().classify(" ".join(sample.split()))[0]
    return "" if found == "und" or len(found) != 2 else found


@cache
def _identifier() -> Any:
    require("py3langid", "documents", "Noting a document's language")
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=SURE)
