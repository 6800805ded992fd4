"""Questions whose answer is copied from the chunk, with the place it stands at."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from potstill.generate.grounding import Found, locate, support
from potstill.generate.kinds.base import Grounded, ListKind, Setting, Source, text
from potstill.generate.kinds.template import SYSTEM_RULES, ChunkShot, Template, worked
from potstill.generate.repair import Item
from potstill.generate.unusable import UnusableError
from potstill.records import Chunk, Example


class ExtractivePrompt(Template):
    """How the teacher is asked for copied answers."""

    name: str = Field("chunk-extractive", min_length=1, description="Name that rows carry.")
    system: str = Field(
        "You write questions for a reading test. Each answer is a few words copied from the "
        "passage, letter by letter, without changing them. " + SYSTEM_RULES,
        description="System turn. {language} is the language to write in.",
    )
    ask: str = Field(
        "Write {count} questions about this passage as "
        '{"pairs": [{"question": "...", "answer": "..."}]}, each answer at most {words} words '
        "copied from it. Write fewer where it says less.\n\nPassage: {passage}",
        description="User turn. {passage}, {count}, and {words}: the longest answer.",
    )
    shots: tuple[ChunkShot, ...] = worked(
        pairs=[
            {
                "question": "When does the ferry Blue Marlin leave Port Sena?",
                "answer": "at 7:15 every weekday",
            },
            {
                "question": "What does the Blue Marlin carry besides 4 cars?",
                "answer": "48 passengers",
            },
        ]
    )


class Extract(Item):
    """One question of a reply and the words that answer it."""

    question: str = Field(min_length=5)
    answer: str = Field(min_length=1)


class ExtractiveKind(ListKind):
    """Questions with an answer copied from the chunk; the row's answer is the chunk's own words."""

    LIST: ClassVar[str] = "pairs"
    ITEM: ClassVar[type[Item]] = Extract
    PROPERTIES: ClassVar[dict[str, Any]] = {"question": text(10, 250), "answer": text(1, 160)}
    ROW_TOKENS: ClassVar[int] = 40

    kind: Literal["extractive"] = Field("extractive", description="Answers copied from the chunk.")
    per_chunk: int = Field(8, ge=1, le=64, description="Most questions asked for from one chunk.")
    max_answer_words: int = Field(12, ge=1, le=100, description="Longest answer, in words.")
    prompt: ExtractivePrompt = Field(ExtractivePrompt(), description="How the teacher is asked.")

    @property
    def numbers(self) -> dict[str, str]:
        """What `ask` may name besides {passage}."""
        return {"count": str(self.per_chunk), "words": str(self.max_answer_words)}

    def row(self, item: Extract, source: Source, setting: Setting) -> Example:
        """A question whose answer stands in the chunk, as the chunk writes it."""
        chunk = source.chunks[0]
        found = self._find(chunk, item)
        answer = " ".join(chunk.text[found.span.start : found.span.end].split())
        self.check_question(item.question, answer)
        if len(answer.split()) > self.max_answer_words:
            raise UnusableError("answer_too_long", answer)
        return self.example(
            source,
            setting,
            question=item.question,
            answer=answer,
            use="answer",
            grounded=Grounded(chunk, found),
        )

    def _find(self, chunk: Chunk, item: Extract) -> Found:
        """The answer in the sentence that the question is about, of several places."""
        found = locate(chunk.text, item.answer)
        if found is None:
            raise UnusableError("answer_not_in_passage", item.answer)
        if found.how == "fuzzy":
            return found
        best = support(chunk.text, item.question, item.answer, least=0.0)
        return best if best.how in ("exact", "normal") else found
