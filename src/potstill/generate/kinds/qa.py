"""Question-answer pairs with the reason and the sentence it rests on, several of one chunk."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from potstill.generate.kinds.base import ListKind, Setting, Source, text
from potstill.generate.kinds.template import SYSTEM_RULES, ChunkShot, Template, worked
from potstill.generate.repair import Item
from potstill.records import Example


class QaPrompt(Template):
    """How the teacher is asked for pairs with reasons."""

    name: str = Field("chunk-qa", min_length=1, description="Name that rows are marked with.")
    system: str = Field(
        "You write question-answer pairs for training, from a passage. For each pair, write the "
        "question, copy the sentence of the passage that answers it word for word as evidence, "
        "explain in one sentence how the answer follows from it, and give the answer, short and "
        "complete. Ask about different facts: names, figures, causes, conditions, steps. "
        + SYSTEM_RULES,
        description="System turn. {language} is the language to write in.",
    )
    ask: str = Field(
        "Write {count} question-answer pairs about this passage as "
        '{"pairs": [{"question": "...", "evidence": "...", "reasoning": "...", "answer": "..."}]}. '
        "Write fewer where it says less.\n\nPassage: {passage}",
        description="User turn. {passage}, and {count}: how many pairs.",
    )
    shots: tuple[ChunkShot, ...] = worked(
        pairs=[
            {
                "question": "How many cars can the Blue Marlin carry?",
                "evidence": "It carries 48 passengers and 4 cars.",
                "reasoning": "The ferry takes 4 cars besides its 48 passengers.",
                "answer": "4 cars",
            },
            {
                "question": "Why is the Blue Marlin's last winter crossing at 16:40?",
                "evidence": "In winter the last crossing is at 16:40, because the "
                "channel has no lights.",
                "reasoning": "Without lights the channel cannot be crossed after dark.",
                "answer": "Because the channel has no lights.",
            },
        ]
    )


class Pair(Item):
    """One pair of a reply."""

    question: str = Field(min_length=5)
    evidence: str = ""
    reasoning: str = ""
    answer: str = Field(min_length=1)


class QaKind(ListKind):
    """Question-answer pairs with reasons, several of one chunk in one reply."""

    LIST: ClassVar[str] = "pairs"
    ITEM: ClassVar[type[Item]] = Pair
    PROPERTIES: ClassVar[dict[str, Any]] = {
        "question": text(10, 250),
        "evidence": text(5, 400),
        "reasoning": text(1, 300),
        "answer": text(1, 300),
    }
    ROW_TOKENS: ClassVar[int] = 90

    kind: Literal["qa"] = Field("qa", description="Question-answer pairs with reasons.")
    per_chunk: int = Field(8, ge=1, le=64, description="Most pairs asked for from one chunk.")
    prompt: QaPrompt = Field(QaPrompt(), description="How the teacher is asked.")

    def row(self, item: Pair, source: Source, setting: Setting) -> Example:
        """A pair whose answer its passage supports."""
        self.check_question(item.question, item.answer)
        grounded = source.ground(item.question, item.answer, item.evidence, setting.least_support)
        return self.example(
            source,
            setting,
            question=item.question,
            answer=item.answer,
            reasoning=item.reasoning,
            use="answer",
            grounded=grounded,
        )
