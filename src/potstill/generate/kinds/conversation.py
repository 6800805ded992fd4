"""Conversations of several turns about several neighbouring chunks of a document."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field

from potstill.generate.filling import fill
from potstill.generate.kinds.base import ChunkKind, Grounded, Outcome, Setting, Source, text
from potstill.generate.kinds.template import SYSTEM_RULES, ChunkShot, Template, worked
from potstill.generate.repair import Item
from potstill.generate.unusable import UnusableError
from potstill.records import Chunk, Turn

FEWEST_TURNS = 2


class ConversationPrompt(Template):
    """How the teacher is asked for a conversation."""

    name: str = Field("chunks-conversation", min_length=1, description="Name that rows carry.")
    system: str = Field(
        "You write a conversation between a curious person and an assistant who knows the passage. "
        "Each question goes on from the answer before it, and may say it, they or there for what "
        "was named. For each turn copy the sentence of the passage that answers it word for word "
        "as evidence; the answer is one or two sentences. Let the turns touch different parts of "
        "the passage. " + SYSTEM_RULES,
        description="System turn. {language} is the language to write in.",
    )
    ask: str = Field(
        "Write a conversation of {turns} turns about this passage as "
        '{"turns": [{"question": "...", "evidence": "...", "answer": "..."}]}.\n\n'
        "Passage: {passage}",
        description="User turn. {passage}, and {turns}: how many questions.",
    )
    shots: tuple[ChunkShot, ...] = worked(
        turns=[
            {
                "question": "When does the ferry Blue Marlin leave Port Sena?",
                "evidence": "The ferry Blue Marlin leaves Port Sena at 7:15 every weekday.",
                "answer": "It leaves Port Sena at 7:15 every weekday.",
            },
            {
                "question": "And when is its last crossing in winter?",
                "evidence": "In winter the last crossing is at 16:40, because the "
                "channel has no lights.",
                "answer": "In winter the last crossing is at 16:40.",
            },
        ]
    )


class Exchange(Item):
    """One question of a reply and its answer."""

    question: str = Field(min_length=3)
    evidence: str = ""
    answer: str = Field(min_length=1)


class ConversationKind(ChunkKind):
    """Conversations about several neighbouring chunks; the passage stands in the first turn."""

    LIST: ClassVar[str] = "turns"
    ITEM: ClassVar[type[Item]] = Exchange
    PROPERTIES: ClassVar[dict[str, Any]] = {
        "question": text(5, 250),
        "evidence": text(5, 400),
        "answer": text(1, 400),
    }
    ROW_TOKENS: ClassVar[int] = 80

    kind: Literal["conversation"] = Field(
        "conversation", description="Conversations over several chunks."
    )
    chunks: int = Field(3, ge=1, le=16, description="Neighbouring chunks that it is about.")
    turns: int = Field(3, ge=2, le=16, description="Questions of a conversation.")
    prompt: ConversationPrompt = Field(
        ConversationPrompt(), description="How the teacher is asked."
    )

    @property
    def most(self) -> int:
        """Turns of one reply, at most."""
        return self.turns

    @property
    def rows_a_request(self) -> float:
        """A reply is one row."""
        return 1.0

    @property
    def chunks_a_request(self) -> int:
        """Chunks that one request reads."""
        return self.chunks

    @property
    def numbers(self) -> dict[str, str]:
        """What `ask` may name besides {passage}."""
        return {"turns": str(self.turns)}

    def sources(self, chunks: Iterable[Chunk]) -> Iterator[Source]:
        """Runs of neighbours, each chunk in one; a document's last run may be shorter."""
        run: list[Chunk] = []
        for chunk in chunks:
            if run and (len(run) == self.chunks or chunk.document != run[0].document):
                yield Source(tuple(run))
                run = []
            run.append(chunk)
        if run:
            yield Source(tuple(run))

    def rows(self, items: tuple[Any, ...], source: Source, setting: Setting) -> list[Outcome]:
        """One row of the turns up to the first that the passage does not support."""
        turns: list[Turn] = []
        grounded: Grounded | None = None
        failure: UnusableError | None = None
        template = self.prompt.student or setting.words("answer")
        for item in items[: self.turns]:
            try:
                self.check_question(item.question, item.answer, ends=False)
                place = source.ground(
                    item.question, item.answer, item.evidence, setting.least_support
                )
            except UnusableError as problem:
                failure = problem
                break
            grounded = place
            asked = item.question
            if not turns:
                asked = fill(template, passage=source.text, question=asked)
            turns += [Turn(role="user", content=asked), Turn(role="assistant", content=item.answer)]
        written = "\n".join(item.model_dump_json() for item in items)
        if len(turns) < 2 * FEWEST_TURNS:
            failure = failure or UnusableError("too_few_turns", f"{len(turns) // 2} turns")
            return [Outcome(None, failure, written)]
        last = items[len(turns) // 2 - 1]
        example = self.example(
            source,
            setting,
            question=last.question,
            answer=last.answer,
            use="answer",
            grounded=grounded,
            earlier=tuple(turns[:-2]),
        )
        cut = [] if failure is None else [Outcome(None, failure, written)]
        return [Outcome(example), *cut]
