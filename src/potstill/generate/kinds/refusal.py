"""Questions that the chunk seems to answer and does not: the student learns to say so."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from potstill.generate.grounding import share
from potstill.generate.kinds.base import ListKind, Setting, Source, text
from potstill.generate.kinds.template import SYSTEM_RULES, ChunkShot, Template, worked
from potstill.generate.repair import Item
from potstill.generate.unusable import UnusableError
from potstill.generate.words import telling
from potstill.records import Example


class RefusalPrompt(Template):
    """How the teacher is asked for questions without an answer."""

    name: str = Field("chunk-refusal", min_length=1, description="Name that rows are marked with.")
    system: str = Field(
        "You write questions that a passage does not answer. Each asks about a thing or person of "
        "the passage, and sounds as if the answer stood there, but it does not. Say what is "
        "missing in a few words. " + SYSTEM_RULES,
        description="System turn. {language} is the language to write in.",
    )
    ask: str = Field(
        "Write {count} questions that this passage does not answer as "
        '{"questions": [{"question": "...", "missing": "..."}]}.\n\nPassage: {passage}',
        description="User turn. {passage}, and {count}: how many questions.",
    )
    shots: tuple[ChunkShot, ...] = worked(
        questions=[
            {
                "question": "How much does a ticket for the Blue Marlin cost?",
                "missing": "the price of a ticket",
            }
        ]
    )


class Unanswered(Item):
    """One question of a reply."""

    question: str = Field(min_length=5)
    missing: str = Field(min_length=2)


class RefusalKind(ListKind):
    """Questions that the chunk does not answer, with one fixed answer that says so."""

    LIST: ClassVar[str] = "questions"
    ITEM: ClassVar[type[Item]] = Unanswered
    PROPERTIES: ClassVar[dict[str, Any]] = {"question": text(10, 250), "missing": text(2, 120)}
    ROW_TOKENS: ClassVar[int] = 40

    kind: Literal["refusal"] = Field(
        "refusal", description="Questions that the chunk does not answer."
    )
    per_chunk: int = Field(2, ge=1, le=64, description="Most questions asked for from one chunk.")
    answer: str = Field(
        "",
        description="What the student learns to say. Empty: the words for it in "
        "generate.language (The passage does not say.).",
    )
    prompt: RefusalPrompt = Field(RefusalPrompt(), description="How the teacher is asked.")

    def row(self, item: Unanswered, source: Source, setting: Setting) -> Example:
        """A question on the passage's matter, about something that its words do not name."""
        answer = self.answer or setting.words("declines")
        self.check_question(item.question, answer)
        passage = telling(source.text)
        about, missing = telling(item.question), telling(item.missing)
        if setting.least_support and about and share(about, passage) == 0:
            raise UnusableError("off_topic", item.question)
        if setting.least_support and (not missing or share(missing, passage) == 1):
            raise UnusableError("may_be_answered", f"{item.question} / {item.missing}")
        return self.example(
            source,
            setting,
            question=item.question,
            answer=answer,
            reasoning=item.missing,
            use="answer",
            grounded=None,
        )
