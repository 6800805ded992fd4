"""Runs generation: asks the teacher about every chunk, checks each reply, asks again, keeps count.

In: ingest's chunks.jsonl. Out: examples.jsonl, rejected.jsonl (what failed at every attempt, with
the last reply) and summary.json, in the order of the chunks whatever the order of the replies.
A killed run goes on from the replies that were stored: none is asked for twice, and as a reply
depends on its request alone, the rows are those of an undisturbed run.
Knows nothing of engines; `inference.open` does.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from itertools import islice
from typing import Any

from potstill.core.files import read_records, write_json, write_records
from potstill.core.stage import Artifact, Context, Draft
from potstill.errors import InputError, TeacherError
from potstill.generate.config import GenerateConfig
from potstill.generate.focus import Task, plan
from potstill.generate.prompts import teacher_turns
from potstill.generate.questions import UnusableError, normal, schema, to_example
from potstill.inference.base import Reply, Request, TextModel
from potstill.inference.budget import Meter
from potstill.inference.open import engine_identity, open_model
from potstill.inference.replay import ReplayModel
from potstill.records import Chunk, Example, Rejected, short_id

BLOCK = 64  # chunks whose replies are in memory at once
LONGEST_SHOWN = 400  # characters of a refused reply in the run's events; its row has all of it
GIVE_UP_AFTER = 200  # requests without one usable reply: more would only cost time


@dataclass
class Wanted:
    """A pair that is asked for, and what came of it."""

    chunk: Chunk
    task: Task
    example: Example | None = None
    rejected: Rejected | None = None


def run(
    config: GenerateConfig,
    inputs: Mapping[str, Artifact],
    draft: Draft,
    context: Context,
    opener: Callable[[], AbstractContextManager[TextModel]] | None = None,
) -> None:
    """Write the rows of all chunks. `opener` replaces the teacher (for tests).

    Errors: TeacherError if no reply is usable, InputError if the chunks hold nothing to ask about,
    ModelError if the teacher cannot be opened, BudgetError if it would cost more than it may.
    """

    def open_teacher() -> AbstractContextManager[TextModel]:
        return open_model(
            config.teacher,
            config.backend,
            threads=context.threads,
            parallel=config.parallel,
            context_tokens=config.context_tokens,
            endpoint=config.endpoint,
            warn=context.events.warning,
        )

    chunks = inputs["ingest"].path("chunks.jsonl")
    total = sum(len(tasks(config, chunk)) for chunk in read_records(chunks, Chunk))
    if total == 0:
        raise InputError(
            "The chunks hold no sentence or table row that could be asked about.",
            "Look at the ingest stage's chunks.jsonl, or lower generate.min_focus_words.",
        )
    identity = engine_identity(config.teacher, config.backend, config.endpoint)
    meter = Meter(config.budget, config.endpoint, draft.work / "spent.json")
    opened = meter.metered(opener or open_teacher)
    teacher = ReplayModel(context.cache / "requests", identity, opened)
    generation = Generation(config, teacher, context, total, meter)
    with closing(teacher):
        rows = generation.rows(read_records(chunks, Chunk))
        write_records(draft.data / "examples.jsonl", rows)
        write_records(draft.data / "rejected.jsonl", generation.rejected)
    if generation.pairs == 0:
        raise generation.useless()
    write_json(draft.data / "summary.json", generation.summary())
    context.events.metric("requests_sent", teacher.sent)
    context.events.metric("requests_replayed", teacher.replayed)
    if meter.spent.money:
        context.events.metric("cost", meter.spent.money)


class Generation:
    """One pass over the chunks. Its counts are the same on every run of the same key."""

    def __init__(
        self,
        config: GenerateConfig,
        teacher: TextModel,
        context: Context,
        total: int,
        meter: Meter,
    ) -> None:
        self.config, self.teacher, self.context, self.total = config, teacher, context, total
        self.meter = meter
        self.chunks = self.pairs = self.requests = self.done = 0
        self.prompt_tokens = self.completion_tokens = 0
        self.failures: Counter[str] = Counter()
        self.rejected: list[Rejected] = []
        self.refusal = ""

    def rows(self, chunks: Iterator[Chunk]) -> Iterator[Example]:
        """Rows in the order of the chunks, a block of chunks at a time.

        Errors: TeacherError when the teacher is clearly of no use.
        """
        while block := list(islice(chunks, BLOCK)):
            wanted = [Wanted(chunk, task) for chunk in block for task in tasks(self.config, chunk)]
            asked: dict[str, set[str]] = {}
            for attempt in range(self.config.attempts):
                if missing := [one for one in wanted if one.example is None]:
                    self._ask(missing, attempt, asked)
                if self.pairs == 0 and self.requests >= GIVE_UP_AFTER:
                    for one in wanted:
                        if one.rejected is not None:
                            self._reject(one.rejected)
                    raise self.useless()
            self.chunks += len(block)
            self.done += len(wanted)
            for one in wanted:
                if one.example is not None:
                    yield one.example
                elif one.rejected is not None:
                    self._reject(one.rejected)
            self.context.events.progress(self.done, self.total, "pairs")

    def summary(self) -> dict[str, Any]:
        """Counts for summary.json."""
        return {
            "requests": self.requests,
            "chunks": self.chunks,
            "pairs": self.pairs,
            "rejected": _sorted(Counter(one.reason for one in self.rejected)),
            "failed_attempts": _sorted(self.failures),
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
        }

    def useless(self) -> TeacherError:
        """What to say when not one reply of many was usable."""
        if self.refusal:
            return TeacherError(
                f"The teacher {self.config.teacher} refused every request: {self.refusal}.",
                "Raise generate.context_tokens, or make ingest's chunks smaller.",
            )
        counted = ", ".join(f"{reason} {count}" for reason, count in self.failures.most_common(3))
        return TeacherError(
            f"The teacher {self.config.teacher} answered nothing usable in {self.requests} "
            f"requests ({counted}).",
            "Try another teacher, or change generate.prompt; the run's events list the replies.",
        )

    def _ask(self, wanted: list[Wanted], attempt: int, asked: dict[str, set[str]]) -> None:
        """One round of requests. Replies are judged in the chunks' order when all are there:
        which of two equal questions stays must not depend on which came first."""
        requests = [request_for(self.config, one, attempt, self.context.seed) for one in wanted]
        replies: dict[int, Reply] = {}
        for position, reply in self.teacher.complete(requests):
            replies[position] = reply
            self.context.events.progress(
                len(replies),
                len(requests),
                "requests",
                step=f"attempt {attempt + 1}",
                **self.meter.figures(self.pairs, self.done + len(replies), self.total),
            )
        for position, one in enumerate(wanted):
            self._judge(one, replies[position], asked.setdefault(one.chunk.id, set()))

    def _judge(self, one: Wanted, reply: Reply, asked: set[str]) -> None:
        self.requests += 1
        self.prompt_tokens += reply.prompt_tokens
        self.completion_tokens += reply.completion_tokens
        try:
            if reply.finish_reason == "error":
                self.refusal = reply.text
                raise UnusableError("refused", reply.text)
            cut_off = reply.finish_reason == "length"
            example = to_example(
                reply.text, cut_off, one.chunk, one.task, self.config.prompt, self.config.teacher
            )
            if normal(example.question) in asked:
                raise UnusableError("duplicate_question", example.question)
        except UnusableError as failure:
            self.failures[failure.reason] += 1
            one.rejected = _rejected(one, failure, reply)
        else:
            asked.add(normal(example.question))
            one.example = example
            self.pairs += 1

    def _reject(self, rejected: Rejected) -> None:
        self.rejected.append(rejected)
        self.context.events.emit(
            "rejected",
            id=rejected.id,
            reason=rejected.reason,
            detail=rejected.detail,
            reply=str(rejected.row["reply"])[:LONGEST_SHOWN],
        )


def tasks(config: GenerateConfig, chunk: Chunk) -> list[Task]:
    """What is asked about a chunk."""
    return plan(
        chunk.text,
        limit=config.pairs_per_chunk,
        min_words=config.min_focus_words,
        max_answer_words=config.max_answer_words,
    )


def request_for(config: GenerateConfig, one: Wanted, attempt: int, seed: int) -> Request:
    """The request of an attempt: a function of the recipe, the chunk and the task alone."""
    turns = teacher_turns(config.prompt, one.chunk.text, one.task.shown, one.task.answer)
    own_seed = request_seed(seed, one.chunk.id, one.task.index, attempt)
    drawn = request_seed(seed, one.chunk.id, one.task.index, -1) / 2**31
    share = config.prompt.in_place_share
    return Request(
        messages=turns,
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        seed=own_seed,
        schema=schema(config.prompt, one.task, drawn < share or (attempt > 0 and share > 0)),
    )


def request_seed(seed: int, chunk: str, index: int, attempt: int) -> int:
    """31 bits that depend on the run's seed, the chunk, the pair and the attempt, on no order."""
    name = f"{seed}/{chunk}/{index}/{attempt}".encode()
    return int.from_bytes(hashlib.sha256(name).digest()[:4], "big") >> 1


def _rejected(one: Wanted, failure: UnusableError, reply: Reply) -> Rejected:
    return Rejected(
        id=short_id(one.chunk.id, str(one.task.index)),
        stage="generate",
        reason=failure.reason,
        detail=failure.detail,
        row={
            "chunk": one.chunk.id,
            "focus": one.task.focus,
            "answer": one.task.answer,
            "reply": reply.text,
        },
    )


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items()))
