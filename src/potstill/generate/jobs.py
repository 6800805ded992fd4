"""One thing to ask the teacher for, of any kind, and what its reply is worth.

In: chunks and a kind. Out: `Job`s: the request of each attempt, and the rows or reasons that a
reply makes. A request is a function of the recipe, the chunk and, for a retry, the reply before.
Knows no engine and no order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from potstill.generate.config import GenerateConfig
from potstill.generate.focus import Task, plan
from potstill.generate.kinds import AnyKind, ChunkKind
from potstill.generate.kinds.base import Outcome, Setting, Source
from potstill.generate.prompts import teacher_turns
from potstill.generate.questions import schema, to_example
from potstill.generate.repair import Shape, parse
from potstill.generate.unusable import UnusableError
from potstill.inference.base import Reply, Request
from potstill.records import Chunk, Rejected, Turn, short_id

STAGE = "generate"
LONGEST_TOLD = 4000  # characters of a failed reply that the teacher sees again
AGAIN = (
    "That cannot be used: {problem}. Write the whole JSON object again, without this mistake, and "
    "nothing else."
)


@dataclass(frozen=True)
class Failed:
    """An attempt that gave no row."""

    reply: Reply
    failure: UnusableError


class Job(Protocol):
    """What is asked for once, and again if nothing comes of it."""

    @property
    def scope(self) -> str:
        """Questions may not repeat inside one scope."""
        ...

    @property
    def passage(self) -> str:
        """The text that rows of it must rest on."""
        ...

    def request(self, attempt: int, before: Failed | None) -> Request:
        """The request of an attempt, from 0; `before`: what the last one gave."""
        ...

    def read(self, reply: Reply) -> list[Outcome]:
        """Rows and reasons. Errors: UnusableError if the reply holds none."""
        ...

    def rejected(self, failure: UnusableError, written: str, place: int | None) -> Rejected:
        """The record of what failed: a part of a reply, or (`place` None) all of it."""
        ...


@dataclass(frozen=True)
class FocusJob:
    """A question about one fact."""

    config: GenerateConfig
    seed: int
    chunk: Chunk
    task: Task

    @property
    def scope(self) -> str:
        """Questions may not repeat in a chunk."""
        return self.chunk.id

    @property
    def passage(self) -> str:
        """The chunk."""
        return self.chunk.text

    def request(self, attempt: int, before: Failed | None) -> Request:
        """The same words, with a seed of its own."""
        config = self.config
        turns = teacher_turns(config.prompt, self.chunk.text, self.task.shown, self.task.answer)
        drawn = request_seed(self.seed, self.chunk.id, self.task.index, -1) / 2**31
        share = config.prompt.in_place_share
        in_place = drawn < share or (attempt > 0 and share > 0)
        return Request(
            messages=turns,
            max_tokens=config.max_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            seed=request_seed(self.seed, self.chunk.id, self.task.index, attempt),
            schema=schema(config.prompt, self.task, in_place),
        )

    def read(self, reply: Reply) -> list[Outcome]:
        """The one row."""
        cut_off = reply.finish_reason == "length"
        config = self.config
        return [
            Outcome(
                to_example(
                    reply.text, cut_off, self.chunk, self.task, config.prompt, config.teacher
                ),
                written=reply.text,
            )
        ]

    def rejected(self, failure: UnusableError, written: str, place: int | None) -> Rejected:
        """The fact that was asked about and the last reply."""
        return Rejected(
            id=short_id(self.chunk.id, str(self.task.index)),
            stage=STAGE,
            reason=failure.reason,
            detail=failure.detail,
            row={
                "chunk": self.chunk.id,
                "focus": self.task.focus,
                "answer": self.task.answer,
                "reply": written,
            },
        )


@dataclass(frozen=True)
class ChunkJob:
    """Rows of one kind from one choice of chunks."""

    config: GenerateConfig
    seed: int
    kind: ChunkKind
    source: Source
    place: int
    """Of the kind in the recipe: the same kind may be asked for twice."""

    @property
    def scope(self) -> str:
        """Questions may not repeat in a reply."""
        return self.source.id

    @property
    def passage(self) -> str:
        """All its chunks."""
        return self.source.text

    @property
    def setting(self) -> Setting:
        """What its rows share with all others."""
        config = self.config
        return Setting(config.teacher, config.prompt.student, config.language, config.min_support)

    def request(self, attempt: int, before: Failed | None) -> Request:
        """The kind's prompt; after a failure, that reply and what was wrong with it."""
        turns = self.kind.conversation(self.source, self.setting)
        if before is not None and before.reply.finish_reason != "error":
            problem = before.failure.reason.replace("_", " ")
            if before.failure.detail:
                problem += f" ({before.failure.detail[:300]})"
            told = Turn(role="user", content=AGAIN.format(problem=problem))
            said = Turn(role="assistant", content=before.reply.text[:LONGEST_TOLD] or "{}")
            turns = (*turns, said, told)
        return Request(
            messages=turns,
            max_tokens=self.kind.max_tokens,
            temperature=self.config.temperature,
            top_p=self.config.top_p,
            seed=request_seed(self.seed, self.source.id, self.place, attempt),
            schema=self.kind.reply_schema(),
        )

    def read(self, reply: Reply) -> list[Outcome]:
        """The rows that hold, and of each other part of the reply what is wrong with it."""
        cut_off = reply.finish_reason == "length"
        parsed = parse(reply.text, Shape(self.kind.ITEM, self.kind.LIST), cut_off)
        outcomes = self.kind.rows(parsed.items, self.source, self.setting)
        for problem, written in parsed.refused:
            outcomes.append(Outcome(None, UnusableError("invalid_row", problem), written))
        if cut_off:
            lost = UnusableError("cut_off", "the reply was longer than max_tokens")
            outcomes.append(Outcome(None, lost, reply.text[-LONGEST_TOLD:]))
        return outcomes

    def rejected(self, failure: UnusableError, written: str, place: int | None) -> Rejected:
        """The part of the reply, or all of it."""
        parts = [self.source.id, self.kind.prompt.label, str(self.place)]
        return Rejected(
            id=short_id(*parts, *([] if place is None else [str(place)])),
            stage=STAGE,
            reason=failure.reason,
            detail=failure.detail,
            row={
                "kind": self.kind.prompt.name,
                "chunks": [chunk.id for chunk in self.source.chunks],
                "reply": written,
            },
        )


def jobs_of(
    config: GenerateConfig, place: int, chunks: Iterable[Chunk], seed: int
) -> Iterator[Job]:
    """What is asked for the recipe's kind at `place`, in the order of the chunks."""
    kind: AnyKind = config.kinds[place]
    if isinstance(kind, ChunkKind):
        for source in kind.sources(chunks):
            yield ChunkJob(config, seed, kind, source, place)
        return
    for chunk in chunks:
        for task in tasks(config, chunk):
            yield FocusJob(config, seed, chunk, task)


def tasks(config: GenerateConfig, chunk: Chunk) -> list[Task]:
    """What is asked about a chunk, a fact at a time."""
    return plan(
        chunk.text,
        limit=config.pairs_per_chunk,
        min_words=config.min_focus_words,
        max_answer_words=config.max_answer_words,
    )


def request_seed(seed: int, chunk: str, index: int, attempt: int) -> int:
    """31 bits that depend on the run's seed, the chunk, the pair and the attempt, on no order."""
    name = f"{seed}/{chunk}/{index}/{attempt}".encode()
    return int.from_bytes(hashlib.sha256(name).digest()[:4], "big") >> 1
