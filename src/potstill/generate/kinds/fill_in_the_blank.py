"""Sentences of the chunk with a blank, and what belongs there."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from potstill.core.blanks import ANY_BLANK
from potstill.generate.grounding import Found, locate, locate_answer, support
from potstill.generate.kinds.base import Grounded, ListKind, Setting, Source, text
from potstill.generate.kinds.template import SYSTEM_RULES, ChunkShot, Template, worked
from potstill.generate.repair import Item
from potstill.generate.unusable import UnusableError
from potstill.records import Chunk, Example

BLANK = "____"


class BlankPrompt(Template):
    """How the teacher is asked for sentences with a blank."""

    name: str = Field("chunk-blank", min_length=1, description="Name that rows are marked with.")
    system: str = Field(
        "You write fill-in-the-blank exercises. Take a sentence of the passage, leave out the few "
        "words that matter most in it and write ____ there. Whoever knows the passage must find "
        "one answer only. " + SYSTEM_RULES,
        description="System turn. {language} is the language to write in.",
    )
    ask: str = Field(
        "Write {count} exercises about this passage as "
        '{"blanks": [{"sentence": "... ____ ...", "answer": "..."}]}, one blank each. '
        "Write fewer where it says less.\n\nPassage: {passage}",
        description="User turn. {passage}, and {count}: how many exercises.",
    )
    shots: tuple[ChunkShot, ...] = worked(
        blanks=[
            {
                "sentence": "The ferry Blue Marlin carries 48 passengers and ____.",
                "answer": "4 cars",
            }
        ]
    )


class Blank(Item):
    """One exercise of a reply."""

    sentence: str = Field(min_length=5)
    answer: str = Field(min_length=1)


class FillInTheBlankKind(ListKind):
    """Sentences with a blank, and what belongs there."""

    LIST: ClassVar[str] = "blanks"
    ITEM: ClassVar[type[Item]] = Blank
    PROPERTIES: ClassVar[dict[str, Any]] = {"sentence": text(15, 400), "answer": text(1, 120)}
    ROW_TOKENS: ClassVar[int] = 45

    kind: Literal["fill_in_the_blank"] = Field(
        "fill_in_the_blank", description="Sentences with a blank."
    )
    per_chunk: int = Field(5, ge=1, le=64, description="Most exercises asked for from one chunk.")
    prompt: BlankPrompt = Field(BlankPrompt(), description="How the teacher is asked.")

    def row(self, item: Blank, source: Source, setting: Setting) -> Example:
        """A sentence with one blank whose filled form its passage supports."""
        blanks = ANY_BLANK.findall(item.sentence)
        if len(blanks) != 1:
            raise UnusableError("not_one_blank", f"{len(blanks)} in: {item.sentence}")
        sentence = ANY_BLANK.sub(BLANK, item.sentence)
        self.check_question(sentence, item.answer, ends=False)
        chunk = source.chunks[0]
        found = self._find(chunk, sentence, item.answer, setting)
        return self.example(
            source,
            setting,
            question=sentence,
            answer=item.answer,
            use="fill_in",
            grounded=Grounded(chunk, found),
        )

    def _find(self, chunk: Chunk, sentence: str, answer: str, setting: Setting) -> Found:
        """The answer in the sentence that was taken; where it was reworded, in the likeliest."""
        filled = sentence.replace(BLANK, answer)
        taken = locate(chunk.text, filled)
        if taken is None:
            return support(chunk.text, sentence, filled, least=setting.least_support)
        return locate_answer(chunk.text, answer, taken.span) or taken
