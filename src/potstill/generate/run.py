"""Runs generation: ready-made rows first, then what the teacher writes, then variants of both.

In: ingest's rows.jsonl and chunks.jsonl. Out: examples.jsonl, rejected.jsonl, summary.json, and
judgements.jsonl where the teacher judged. Rows that came ready-made are passed on as they are; with
nothing to ask, no teacher is opened.
Knows nothing of engines; `inference.open` does. What is asked is `jobs.py`, how is `asking.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing
from itertools import chain
from pathlib import Path
from typing import Any

from potstill.core.files import count_lines, read_records, write_json, write_records
from potstill.core.stage import Artifact, Context, Draft
from potstill.errors import InputError
from potstill.generate.asking import Generation, ordered
from potstill.generate.config import GenerateConfig
from potstill.generate.jobs import jobs_of
from potstill.generate.joining import joined
from potstill.generate.kinds import ChunkKind, FocusKind
from potstill.generate.paraphrase_config import ParaphraseConfig
from potstill.generate.paraphrases import Paraphrasing, is_asked_for
from potstill.inference.base import TextModel
from potstill.inference.budget import Meter
from potstill.inference.endpoint import EndpointConfig
from potstill.inference.open import Opening, engine_identity, open_model
from potstill.inference.replay import ReplayModel
from potstill.records import Chunk, Example

Opener = Callable[[], AbstractContextManager[TextModel]]


def run(
    config: GenerateConfig,
    inputs: Mapping[str, Artifact],
    draft: Draft,
    context: Context,
    opener: Opener | None = None,
    opening: Opening = open_model,
) -> None:
    """Write the rows of all chunks. `opener` replaces every teacher (for tests); `opening` says how
    one is opened.

    Errors: TeacherError if no reply is usable, InputError if there is neither a row nor anything to
    ask about, ModelError if a teacher cannot be opened, BudgetError if it would cost more than
    it may.
    """
    ready, chunks = inputs["ingest"].path("rows.jsonl"), inputs["ingest"].path("chunks.jsonl")
    passed, total = count_lines(ready), _total(config, chunks, context.seed)
    if total == 0 and passed == 0:
        raise InputError(
            "The chunks hold no sentence or table row that could be asked about.",
            "Look at the ingest stage's chunks.jsonl, or lower generate.min_focus_words.",
        )
    examples = draft.data / "examples.jsonl"
    meter = Meter(config.budget, ledger=draft.work / "spent.json")
    engines = Engines(config, context, meter, opener, opening)
    teacher = engines.main()
    generation = Generation(config, teacher, context, total, meter)
    with closing(teacher):
        made = _generated(config, generation, chunks, context.seed)
        write_records(examples, chain(read_records(ready, Example), made))
        write_records(draft.data / "rejected.jsonl", generation.rejected)
    if generation.pairs == 0 and total:
        raise generation.useless()
    summary = generation.summary() | {"chunks": count_lines(chunks), "passed_through": passed}
    sent, replayed = teacher.sent, teacher.replayed
    judgements, rejected = generation.judgements, generation.rejected
    if config.paraphrases:
        varying = Variants(config, context, engines, (float(total), generation.pairs))
        write_records(examples, varying.after(examples))
        rejected = rejected + varying.rejected
        write_records(draft.data / "rejected.jsonl", rejected)
        summary["paraphrases"] = varying.summary()
        sent, replayed = sent + varying.sent, replayed + varying.replayed
        judgements = judgements + varying.judgements
    if config.judge == "teacher":
        write_records(draft.data / "judgements.jsonl", judgements)
    write_json(draft.data / "summary.json", summary)
    context.events.metric("requests_sent", sent)
    context.events.metric("requests_replayed", replayed)
    if meter.spent.money:
        context.events.metric("cost", meter.spent.money)


def _generated(
    config: GenerateConfig, generation: Generation, chunks: Path, seed: int
) -> Iterator[Example]:
    """All kinds, one after another."""
    for place, kind in enumerate(config.kinds):
        step = kind.kind if isinstance(kind, ChunkKind) else ""
        jobs = jobs_of(config, place, read_records(chunks, Chunk), seed)
        rows = generation.rows(jobs, step)
        yield from joined(rows, kind.turns) if isinstance(kind, FocusKind) else rows


def _total(config: GenerateConfig, chunks: Path, seed: int) -> int:
    return sum(
        1
        for place in range(len(config.kinds))
        for _ in jobs_of(config, place, read_records(chunks, Chunk), seed)
    )


class Variants:
    """All paraphrases of all rows, one teacher and tone after another."""

    def __init__(
        self,
        config: GenerateConfig,
        context: Context,
        engines: Engines,
        before: tuple[float, int],
    ) -> None:
        self.config, self.context, self.engines = config, context, engines
        self.before = before
        self.done: list[Paraphrasing] = []
        self.sent = self.replayed = 0

    def after(self, examples: Path) -> Iterator[Example]:
        """The rows of the file, then their variants."""
        yield from read_records(examples, Example)
        seed = self.context.seed
        taken: dict[str, set[str]] = {}
        for one in self.config.paraphrases:
            teacher = self.engines.of(one)
            total = sum(is_asked_for(row, one, seed) for row in read_records(examples, Example))
            work = Paraphrasing(
                self.config, one, teacher, self.context, total, self.engines.meter, self._before()
            )
            self.done.append(work)
            with closing(teacher):
                rows = read_records(examples, Example)
                chosen = (row for row in rows if is_asked_for(row, one, seed))
                yield from work.variants(chosen, taken)
            self.sent += teacher.sent
            self.replayed += teacher.replayed

    def _before(self) -> tuple[float, int]:
        """What was asked for and made before the next teacher and tone."""
        asked, made = self.before
        return (
            asked + sum(work.total for work in self.done),
            made + sum(work.made for work in self.done),
        )

    @property
    def rejected(self) -> list[Any]:
        """What no variant came of, of all teachers."""
        return [one for work in self.done for one in work.rejected]

    @property
    def judgements(self) -> list[Any]:
        """What the judges said, of all teachers."""
        return [one for work in self.done for one in work.judgements]

    def summary(self) -> list[dict[str, Any]]:
        """Counts for summary.json, a teacher and tone each."""
        return [
            {
                "tone": work.one.tone,
                "teacher": work.name,
                "rows": work.total,
                "requests": work.requests,
                "variants": work.made,
                "rejected": ordered(Counter(one.reason for one in work.rejected)),
            }
            for work in self.done
        ]


class Engines:
    """Opens teachers, each behind the memory of its replies and one meter for all of them."""

    def __init__(
        self,
        config: GenerateConfig,
        context: Context,
        meter: Meter,
        opener: Opener | None,
        opening: Opening = open_model,
    ) -> None:
        self.config, self.context, self.meter = config, context, meter
        self.opener, self.opening = opener, opening

    def main(self) -> ReplayModel:
        """The teacher of the rows."""
        return self._open(self.config.teacher, self.config.backend, self.config.endpoint)

    def of(self, one: ParaphraseConfig) -> ReplayModel:
        """The teacher of a paraphrase."""
        if not one.teacher:
            return self.main()
        return self._open(one.teacher, one.backend, one.endpoint)

    def _open(self, reference: str, backend: Any, endpoint: EndpointConfig | None) -> ReplayModel:
        """Opened at the first request that is new; the meter counts its prices from here on."""
        self.meter.endpoint = None if backend == "fake" else endpoint

        def open_teacher() -> AbstractContextManager[TextModel]:
            return self.opening(
                reference,
                backend,
                threads=self.context.threads,
                parallel=self.config.parallel,
                context_tokens=self.config.context_tokens,
                endpoint=endpoint,
                warn=self.context.events.warning,
            )

        identity = engine_identity(reference, backend, endpoint)
        opened = self.meter.metered(self.opener or open_teacher)
        return ReplayModel(self.context.cache / "requests", identity, opened)
