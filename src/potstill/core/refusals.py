"""Whether an answer says that it has none.

In: an answer, and the words that a recipe's own refusals use. Out: yes or no. Known are English
phrases; another language's only by the recipe's own words. Knows no model and no row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from potstill.core.scoring import normalize_answer

REFUSAL = "refusal"
"""The kind of a row that has no answer in its passage: its gold answer declines."""
_DECLINES = re.compile(
    r"\b(?:"
    r"(?:i|we) (?:cannot|can not|cant|could not|couldnt|am unable to|am not able to)"
    r" (?:answer|find|tell|say|help|determine|provide|assist)"
    r"|(?:i|we) (?:do not|dont) (?:know|have (?:enough |any |that )?information)"
    r"|(?:passage|text|document|context|information|answer|it|this|that|which) "
    r"(?:does not|doesnt) (?:say|state|mention|tell|contain|provide|give|specify|answer|include)"
    r"|(?:answer|information|it|this|that|which) (?:is not|isnt|was not) "
    r"(?:stated|mentioned|given|specified|provided|included|available|in (?:passage|text|context))"
    r"|(?:not enough|insufficient|no) information (?:is )?(?:given|available|provided|in|to)"
    r"|cannot be (?:answered|determined|found)|unanswerable"
    r"|(?:i am|im) sorry but"
    r")\b"
)
"""As they are without articles and punctuation."""


def says_nothing(answer: str, own: Iterable[str] = ()) -> bool:
    """Whether the answer declines, by a known phrase or by one of `own`, the recipe's words.

    An empty answer declines nothing.
    """
    said = normalize_answer(answer)
    if not said:
        return False
    return bool(_DECLINES.search(said)) or said in {normalize_answer(one) for one in own}
