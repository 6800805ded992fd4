"""Which language a text is in, as far as a small model can tell without network.

In: text. Out: a code of ISO 639-1 and how sure that is. py3langid (BSD licence, 97 languages, a
model of 5 MB in its wheel, no pickle) does it; lingua is better on single words, but brings more
than 100 MB. How sure is sure enough is the caller's matter.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from potstill.core.extras import require


def likeliest(text: str, extra: str, purpose: str) -> tuple[str, float]:
    """(code, probability) of the likeliest language.

    extra, purpose: what is named where py3langid is missing. Errors: MissingExtraError.
    """
    require("py3langid", extra, purpose)
    code, probability = _identifier().classify(text)
    return str(code), float(probability)


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
