"""Which language a text is in, as far as a small model can tell without network.

In: text. Out: a code of ISO 639-1 and how sure that is. py3langid (BSD licence, a model of 5 MB in
its wheel, nothing to download) does it; lingua is better on single words, but brings more than 100
MB. Knows nothing of rows.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from potstill.core.extras import require

FEWEST_LETTERS = 30  # fewer say little
SURE = 0.95  # probability of the other language before a text counts as being in it


@cache
def _identifier() -> Any:
    module = require("py3langid.langid", "curate", "Telling languages apart")
    return module.LanguageIdentifier.from_model_file(module.MODEL_FILE, norm_probs=True)


def language_of(text: str) -> tuple[str, float]:
    """(code, probability) of the likeliest language; ("", 0.0) for a text without letters enough.

    Errors: MissingExtraError if py3langid is not installed.
    """
    if sum(map(str.isalpha, text)) < FEWEST_LETTERS:
        return "", 0.0
    code, probability = _identifier().classify(text)
    return str(code), float(probability)


def is_another(text: str, expected: str) -> str:
    """The language that the text clearly is in instead of the expected one, else nothing."""
    code, probability = language_of(text)
    return code if code and code != expected and probability >= SURE else ""
