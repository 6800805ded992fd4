"""Asks the teacher for everything, judges each reply, asks again, keeps count.

In: jobs, a teacher. Out: rows in the order of the jobs whatever the order of the replies, and what
was rejected. A killed run goes on from the replies that were stored: none is asked for twice, and
as a reply depends on its request alone, the rows are those of an undisturbed run.
Knows nothing of engines, and of files only the run's diary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from potstill.core.stage import Context
from potstill.errors import TeacherError
from potstill.generate import judging
from potstill.generate.config import GenerateConfig
from potstill.generate.jobs import STAGE, Failed, Job
from potstill.generate.kinds import ChunkKind
from potstill.generate.kinds.base import Outcome
from potstill.generate.unusable import UnusableError
from potstill.generate.words import normal
from potstill.inference.base import Reply, Request, TextModel
from potstill.inference.budget import Meter
from potstill.records import Example, Rejected, short_id

FIRST_BLOCK = 64  # things asked for before the teacher may be found to be of no use
LONGEST_SHOWN = 400  # characters of a refused reply in the run's events; its row has all of it
GIVE_UP_AFTER = 200  # requests without one usable reply: more would only cost time
USUALLY_AGAIN = 0.5  # requests after the first for each job, until the teacher has shown it
GIVE_UP_AFTER_LONG = 48  # the same where each request reads a whole chunk


@dataclass
class Wanted:
    """A thing that is asked for, and what came of it."""

    job: Job
    examples: list[Example] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    failed: Failed | None = None


class Generation:
    """One pass over all jobs. Its counts are the same on every run of the same key."""

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
        self.pairs = self.requests = self.done = self.judged = 0
        self.prompt_tokens = self.completion_tokens = 0
        self.kinds: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.rejected: list[Rejected] = []
        self.judgements: list[judging.Judgement] = []
        self.refusal = ""
        self._at, self._block = 0.0, 0  # jobs that lie behind, those of this block in part
        self._behind = 0  # requests of this block's finished rounds
        self._first = 0  # requests of first rounds; all others ask again
        long = all(isinstance(kind, ChunkKind) for kind in config.kinds)
        self.give_up_after = GIVE_UP_AFTER_LONG if long else GIVE_UP_AFTER

    def rows(self, jobs: Iterator[Job], step: str = "") -> Iterator[Example]:
        """Rows in the order of the jobs, a block of them at a time. `step` names the jobs.

        Errors: TeacherError when the teacher is clearly of no use.
        """
        for block in blocks(jobs, FIRST_BLOCK, self.config.block):
            wanted = [Wanted(job) for job in block]
            self._block, self._behind = len(block), 0
            asked: dict[str, set[str]] = {}
            for attempt in range(self.config.attempts):
                if missing := [one for one in wanted if not one.examples]:
                    self._ask(missing, attempt, asked, step)
                if self.pairs == 0 and self.requests >= self.give_up_after:
                    self._close(wanted)
                    raise self.useless()
            if self.config.judge == "teacher":
                self._judge(wanted)
            self.done += len(wanted)
            self._at = float(self.done)
            self._close(wanted)
            for one in wanted:
                self.kinds.update(example.kind for example in one.examples)
                yield from one.examples
            unit = "requests" if step else "pairs"
            self._progress(self.done, self.total, unit, **({"step": step} if step else {}))

    def summary(self) -> dict[str, Any]:
        """Counts for summary.json."""
        counts: dict[str, Any] = {
            "requests": self.requests,
            "pairs": sum(self.kinds.values()),
            "kinds": ordered(self.kinds),
            "rejected": ordered(Counter(one.reason for one in self.rejected)),
            "failed_attempts": ordered(self.failures),
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
        }
        return counts | ({"judged": self.judged} if self.config.judge == "teacher" else {})

    def useless(self) -> TeacherError:
        """What to say when not one reply of many was usable."""
        if self.refusal:
            return TeacherError(
                f"The teacher {self.config.teacher} refused every request: {self.refusal}.",
                "Raise generate.context_tokens, or make ingest's chunks smaller.",
            )
        counted = ", ".join(f"{reason} {count}" for reason, count in self.failures.most_common(3))
        hint = "Try another teacher, or change its prompt (generate.prompt, or that of the kind)"
        if self.config.backend == "fake":
            hint = "The fake writes rows of focus, qa and extractive; name a model for the others"
        return TeacherError(
            f"The teacher {self.config.teacher} answered nothing usable in {self.requests} "
            f"requests ({counted}).",
            f"{hint}; the run's events list the replies.",
        )

    def replies(self, requests: list[Request], step: str, later: float) -> list[Reply]:
        """The replies in the order of the requests, with progress as they come. later: how many
        requests this block is likely to need after these."""
        replies: dict[int, Reply] = {}
        whole = self._behind + len(requests) + later
        self._progress(0, len(requests), "requests", step=step)
        for position, reply in self.teacher.complete(requests):
            replies[position] = reply
            share = (self._behind + len(replies)) / whole
            self._at = max(self._at, self.done + share * self._block)
            self._progress(len(replies), len(requests), "requests", step=step)
        self._behind += len(requests)
        for reply in replies.values():
            self.prompt_tokens += reply.prompt_tokens
            self.completion_tokens += reply.completion_tokens
        return [replies[position] for position in range(len(requests))]

    def _later(self, asked: int, attempt: int) -> float:
        """How many requests are likely to follow a round of the block: as many as did so far."""
        asked_again = self.requests - self._first
        again = asked_again / self._first if self._first else USUALLY_AGAIN
        judged = self._block if self.config.judge == "teacher" else 0
        return judged + (asked * again if attempt + 1 < self.config.attempts else 0.0)

    def _progress(self, done: int, total: int, unit: str, **fields: Any) -> None:
        figures = self.meter.figures(self.pairs, self._at, self.total)
        share = min(1.0, self._at / self.total) if self.total else 1.0
        self.context.events.progress(done, total, unit, **fields, **figures, share=share)

    def _ask(
        self, wanted: list[Wanted], attempt: int, asked: dict[str, set[str]], step: str
    ) -> None:
        """One round of requests. Replies are read in the jobs' order when all are there: which of
        two equal questions stays must not depend on which came first."""
        label = f"{step}, attempt {attempt + 1}" if step else f"attempt {attempt + 1}"
        requests = [one.job.request(attempt, one.failed) for one in wanted]
        later = self._later(len(requests), attempt)
        self.requests += len(requests)
        self._first += len(requests) * (attempt == 0)
        replies = self.replies(requests, label, later)
        for one, reply in zip(wanted, replies, strict=True):
            self._read(one, reply, asked.setdefault(one.job.scope, set()))

    def _read(self, one: Wanted, reply: Reply, asked: set[str]) -> None:
        try:
            if reply.finish_reason == "error":
                self.refusal = reply.text
                raise UnusableError("refused", reply.text)
            outcomes = [self._new(outcome, asked) for outcome in one.job.read(reply)]
        except UnusableError as failure:
            outcomes, one.failed = [], Failed(reply, failure)
            one.rejected = [one.job.rejected(failure, reply.text, None)]
            self.failures[failure.reason] += 1
            return
        one.examples = [made.example for made in outcomes if made.example is not None]
        one.rejected = []
        for place, made in enumerate(outcomes):
            if made.failure is not None:
                one.failed = Failed(reply, made.failure)
                self.failures[made.failure.reason] += 1
                one.rejected.append(one.job.rejected(made.failure, made.written, place))
        self.pairs += len(one.examples)

    def _new(self, outcome: Outcome, asked: set[str]) -> Outcome:
        """The outcome, unless its question was asked before in the same scope."""
        if outcome.example is None:
            return outcome
        question = normal(outcome.example.question)
        if question in asked:
            failure = UnusableError("duplicate_question", outcome.example.question)
            return Outcome(None, failure, outcome.written)
        asked.add(question)
        return outcome

    def _judge(self, wanted: list[Wanted]) -> None:
        """Rows that the teacher itself, asked again, does not find in the passage go."""
        prompt = self.config.judge_prompt
        rows = [(one, example) for one in wanted for example in one.examples]
        if not rows:
            return
        requests = [judging.about_row(prompt, row, one.job.passage) for one, row in rows]
        self.judged += len(requests)
        for (one, row), reply in zip(rows, self.replies(requests, "judging", 0), strict=True):
            try:
                supported, reason = judging.read(reply)
                self.judgements.append(self._judgement(row, supported, reason))
                if not supported:
                    raise UnusableError("judged_unsupported", reason)
            except UnusableError as failure:
                one.examples.remove(row)
                one.rejected.append(
                    Rejected(
                        id=short_id(row.id, "judge"),
                        stage=STAGE,
                        reason=failure.reason,
                        detail=failure.detail,
                        row={"row": row.model_dump(mode="json"), "reply": reply.text},
                    )
                )

    def _judgement(self, row: Example, supported: bool, reason: str) -> judging.Judgement:
        return judging.Judgement(
            id=row.id,
            supported=supported,
            reason=reason,
            judge=self.config.teacher,
            prompt=self.config.judge_prompt.label,
        )

    def _close(self, wanted: list[Wanted]) -> None:
        """What a block lost, in the order of its jobs."""
        for one in wanted:
            for rejected in one.rejected:
                self.rejected.append(rejected)
                emit_rejected(self.context, rejected)


def blocks(jobs: Iterator[Job], first: int, size: int) -> Iterator[list[Job]]:
    """Runs of at least `first`, then at least `size` jobs. A scope is never divided: which of two
    equal questions stays must not depend on where a block ends."""
    block: list[Job] = []
    least = first
    for job in jobs:
        if len(block) >= least and job.scope != block[-1].scope:
            yield block
            block, least = [], size
        block.append(job)
    if block:
        yield block


def emit_rejected(context: Context, rejected: Rejected) -> None:
    """A loss, in the run's diary."""
    context.events.emit(
        "rejected",
        id=rejected.id,
        reason=rejected.reason,
        detail=rejected.detail,
        reply=str(rejected.row["reply"])[:LONGEST_SHOWN],
    )


def ordered(counts: Counter[str]) -> dict[str, int]:
    """Counts by name."""
    return dict(sorted(counts.items()))
