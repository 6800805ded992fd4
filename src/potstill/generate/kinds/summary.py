"""A summary of each chunk in so many words, with nothing in it that the chunk does not say."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from potstill.generate.filling import fill
from potstill.generate.grounding import Found, share
from potstill.generate.kinds.base import Grounded, RowKind, Setting, Source, text, whole
from potstill.generate.kinds.template import SYSTEM_RULES, Template
from potstill.generate.repair import Item
from potstill.generate.unusable import UnusableError
from potstill.generate.words import normal, numbers, spelt, telling, tokens
from potstill.records import Example

FEWEST_WORDS = 8
LETTERS_A_WORD = 12  # at most, on the whole
TOO_LONG = 1.3
"""So many times the words that were asked for are too many."""


class SummaryPrompt(Template):
    """How the teacher is asked for a summary."""

    name: str = Field("chunk-summary", min_length=1, description="Name that rows are marked with.")
    system: str = Field(
        "You summarise passages: what they are about first, then what matters most, in plain "
        "sentences, with names and figures as they stand there. " + SYSTEM_RULES,
        description="System turn. {language} is the language to write in.",
    )
    ask: str = Field(
        'Summarise this passage in at most {words} words as {"summary": "..."}.\n\n'
        "Passage: {passage}",
        description="User turn. {passage}, and {words}: how long at most.",
    )


class Summary(Item):
    """A reply."""

    summary: str = Field(min_length=10)


class SummaryKind(RowKind):
    """One summary of each chunk."""

    LIST: ClassVar[str] = ""
    ITEM: ClassVar[type[Item]] = Summary
    ROW_TOKENS: ClassVar[int] = 100

    kind: Literal["summary"] = Field("summary", description="A summary of each chunk.")
    words: int = Field(60, ge=15, le=1000, description="Longest summary, in words.")
    prompt: SummaryPrompt = Field(SummaryPrompt(), description="How the teacher is asked.")

    @property
    def numbers(self) -> dict[str, str]:
        """What `ask` may name besides {passage}."""
        return {"words": str(self.words)}

    @property
    def properties(self) -> dict[str, Any]:
        """JSON Schemas of a row's fields."""
        most = LETTERS_A_WORD * self.words
        # llama.cpp takes no text whose length may go to 2000.
        return {"summary": text(40, most if most < 2000 else None)}

    def row(self, item: Summary, source: Source, setting: Setting) -> Example:
        """A summary that is shorter than its passage and says nothing else."""
        said, passage = item.summary, source.text
        length = len(tokens(said))
        if length < FEWEST_WORDS:
            raise UnusableError("summary_too_short", said)
        if length > TOO_LONG * self.words or length >= len(tokens(passage)):
            raise UnusableError("summary_too_long", f"{length} words; {self.words} were asked for")
        if normal(said) in normal(passage):
            raise UnusableError("summary_is_a_copy", said)
        if strange := sorted(numbers(said) - numbers(passage) - spelt(passage)):
            raise UnusableError("unsupported_number", f"{', '.join(strange)} in: {said}")
        got = share(telling(said), telling(passage))
        if got < setting.least_support:
            raise UnusableError("unsupported", f"{got:.0%} of the words of: {said}")
        chunk = source.chunks[0]
        return self.example(
            source,
            setting,
            question=fill(setting.words("summarise"), words=str(self.words)),
            answer=said,
            use="ask_summary",
            grounded=Grounded(chunk, Found(whole(chunk), "overlap", got)),
        )
