"""Questions with one right answer among several; the right one stands at a place drawn by lot."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from potstill.generate.kinds.base import ListKind, Setting, Source, text
from potstill.generate.kinds.template import SYSTEM_RULES, ChunkShot, Template, worked
from potstill.generate.repair import Item
from potstill.generate.unusable import UnusableError
from potstill.generate.words import normal
from potstill.records import Example, short_id


class ChoicePrompt(Template):
    """How the teacher is asked for questions with choices."""

    name: str = Field("chunk-choice", min_length=1, description="Name that rows are marked with.")
    system: str = Field(
        "You write multiple-choice questions. For each, write the question, copy the sentence of "
        "the passage that answers it word for word as evidence, give the right answer, and wrong "
        "answers of the same sort and length that the passage rules out. " + SYSTEM_RULES,
        description="System turn. {language} is the language to write in.",
    )
    ask: str = Field(
        "Write {count} multiple-choice questions about this passage as "
        '{"questions": [{"question": "...", "evidence": "...", "answer": "...", "distractors": '
        '["..."]}]}, each with {wrong} distractors. Write fewer where it says less.\n\n'
        "Passage: {passage}",
        description="User turn. {passage}, {count}, and {wrong}: how many wrong answers each.",
    )
    shots: tuple[ChunkShot, ...] = worked(
        questions=[
            {
                "question": "When is the Blue Marlin's last crossing in winter?",
                "evidence": "In winter the last crossing is at 16:40, because the "
                "channel has no lights.",
                "answer": "16:40",
                "distractors": ["7:15", "17:20", "18:05"],
            }
        ]
    )


class Choice(Item):
    """One question of a reply."""

    question: str = Field(min_length=5)
    evidence: str = ""
    answer: str = Field(min_length=1)
    distractors: tuple[str, ...]


class MultipleChoiceKind(ListKind):
    """Questions with one right answer among several."""

    LIST: ClassVar[str] = "questions"
    ITEM: ClassVar[type[Item]] = Choice
    ROW_TOKENS: ClassVar[int] = 90

    kind: Literal["multiple_choice"] = Field(
        "multiple_choice", description="One right answer among several."
    )
    per_chunk: int = Field(5, ge=1, le=64, description="Most questions asked for from one chunk.")
    options: int = Field(
        4, ge=2, le=8, description="Choices of a question, the right one included."
    )
    prompt: ChoicePrompt = Field(ChoicePrompt(), description="How the teacher is asked.")

    @property
    def numbers(self) -> dict[str, str]:
        """What `ask` may name besides {passage}."""
        return {"count": str(self.per_chunk), "wrong": str(self.options - 1)}

    @model_validator(mode="after")
    def shows_its_options(self) -> MultipleChoiceKind:
        """A student who does not see the choices cannot choose."""
        if self.prompt.student and "{options}" not in self.prompt.student:
            raise ValueError("prompt.student must contain {options}")
        return self

    def numbers_of(self, shot: ChunkShot) -> dict[str, str]:
        """The same numbers, as a worked example has them."""
        rows = shot.reply.get(self.LIST, [])
        wrong = {str(len(row.get("distractors", ()))) for row in rows}
        return super().numbers_of(shot) | ({"wrong": wrong.pop()} if len(wrong) == 1 else {})

    @property
    def properties(self) -> dict[str, Any]:
        """JSON Schemas of a row's fields."""
        wrong = self.options - 1
        choices = {"type": "array", "items": text(1, 120), "minItems": wrong, "maxItems": wrong}
        return {
            "question": text(10, 250),
            "evidence": text(5, 400),
            "answer": text(1, 120),
            "distractors": choices,
        }

    def row(self, item: Choice, source: Source, setting: Setting) -> Example:
        """A question whose right answer its passage supports, among different wrong ones."""
        self.check_question(item.question, item.answer)
        wrong: dict[str, str] = {}
        for one in item.distractors:
            if normal(one) and normal(one) != normal(item.answer):
                wrong.setdefault(normal(one), one.strip())
        if len(wrong) < self.options - 1:
            detail = f"{len(wrong)} different wrong answers of {self.options - 1}"
            raise UnusableError("too_few_choices", f"{detail}: {item.question}")
        grounded = source.ground(item.question, item.answer, item.evidence, setting.least_support)
        choices = [item.answer, *list(wrong.values())[: self.options - 1]]
        # Teachers have a favourite place for the right answer; a lot by content has none.
        choices.sort(key=lambda one: short_id(source.id, item.question, one))
        return self.example(
            source,
            setting,
            question=item.question,
            answer=item.answer,
            use="choose",
            grounded=grounded,
            options=tuple(choices),
        )
