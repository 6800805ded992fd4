"""What stands for a blank in a sentence, in the ways in which people and models write one.

In: nothing. Out: patterns. Knows no row; what belongs into a blank is others' matter.
"""

from __future__ import annotations

import re

BLANK = re.compile(
    r"\[(?:blank|mask|_{2,})\]|\(blank\)|<blank>"
    r"|(?<![^\W_])_{2,}+(?!(?!e?s\b)[^\W_])"  # ____ and ____s, and not __init__
    r"|(?<!\S)\.{4,}|\.{4,}(?=\s*\w)",  # dots that end a word only let a sentence trail off
    re.IGNORECASE,
)
"""A blank in any text."""
ANY_BLANK = re.compile(
    rf"\[(?:_+|\.\.\.|\u2026)\]|{BLANK.pattern}|\.{{4,}}|\u2026{{2,}}", re.IGNORECASE
)
"""A blank in a sentence that has one: in others, these leave out part of a quotation."""
