"""The evaluate stage of students that mark answers: the same held-out rows for every model.

In: curate's test rows, ingest's chunks, distill's models, the teacher, corrected if it was. Out:
results.json, predictions.jsonl and rejected.jsonl in the shape that every report reads. Knows
nothing of training.

`teacher` is the recipe's language model, which writes its answers. How near a student's
distributions are to those of the teacher that taught it, be it that one or a span model, is in
`marked_kl` and `same_span`. Finished models stay in draft.work, and a killed run goes on there.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from potstill.core.files import read_json, read_records, write_atomic, write_json, write_records
from potstill.core.stage import Artifact, Context, Draft
from potstill.errors import InputError, ModelError
from potstill.evaluate.extractive.answering import (
    Answered,
    AnswerSpeed,
    Ask,
    Writer,
    by_spans,
    measure_speed,
)
from potstill.evaluate.extractive.config import SpanEvaluateConfig
from potstill.evaluate.extractive.scores import gold_of_row, nearness, scores_of
from potstill.evaluate.marked import MarkScores
from potstill.evaluate.metrics import KEPT_SCORES, ExampleScores
from potstill.evaluate.results import (
    Resampling,
    audited,
    compared,
    environment,
    measured,
    nearness_of,
)
from potstill.evaluate.sources import STUDENTS, Source, referenced, weights_bytes
from potstill.models.corrected import corrected
from potstill.models.load import load_model, load_tokenizer
from potstill.models.size import folder_parameters
from potstill.models.spans.reader import ReaderSettings, SpanReader
from potstill.models.spans.rows import SpanRow, counted, passages, span_rows
from potstill.models.spans.scorer import refusal_of
from potstill.models.spans.signal_config import SpanSignalConfig
from potstill.models.spans.teachers import marks_in
from potstill.records import Example

TEACHER = "teacher"


def run(
    config: SpanEvaluateConfig, inputs: Mapping[str, Artifact], draft: Draft, context: Context
) -> None:
    """Measure every model on every test row whose answer stands in its passage.

    Errors: InputError for fewer than two of them; ModelError for a model that cannot be measured.
    """
    torch.set_num_threads(context.threads)
    examples, rows = _test_rows(config, inputs, draft, context)
    students = _students(inputs["distill"])
    readers = {one.name: partial(_reader, config, one.folder) for one in students}
    loaders: dict[str, Callable[[], Ask]] = {
        name: partial(_asking, reader) for name, reader in readers.items()
    }
    sources = list(students)
    if config.measure_teacher:
        used = corrected(inputs["correct"], config.teacher)
        sources.insert(0, referenced(TEACHER, used))
        loaders = {TEACHER: partial(_writing, config, sources[0].folder), **loaders}
    speeds = _speeds(config, loaders, rows, draft.work, context)
    answers = _answers(loaders, rows, draft.work, context)
    near = _nearness(config, inputs, readers, rows, draft.work, context)
    scored = {name: scores_of(rows, said, near.get(name)) for name, said in answers.items()}
    results = _results(config, sources, rows, answers, scored, speeds, context)
    results["contamination"] = audited(
        inputs["curate"].path("train.jsonl"),
        examples,
        [row.id for row in rows],
        scored,
        config.contamination_words,
        Resampling(context.seed, config.resamples, config.level),
    )
    results["examples"] = {"evaluated": len(rows), "too_long": 0}
    write_json(draft.data / "results.json", results)
    lines = [
        json.dumps(_prediction(row, name, answers[name][at], scored[name][at]), ensure_ascii=False)
        for at, row in enumerate(rows)
        for name in answers
    ]
    write_atomic(draft.data / "predictions.jsonl", "\n".join(lines) + "\n")
    for name, model in results["models"].items():
        for metric, figure in model["metrics"].items():
            context.events.metric(f"{name}/{metric}", figure["value"])


def _test_rows(
    config: SpanEvaluateConfig, inputs: Mapping[str, Artifact], draft: Draft, context: Context
) -> tuple[list[Example], list[SpanRow]]:
    """The test rows in the order of their ids, and those of them that mark a span or none."""
    file = inputs["curate"].path("test.jsonl")
    examples = sorted(read_records(file, Example), key=lambda example: example.id)
    examples = examples[: config.max_examples]
    chunks = passages(inputs["ingest"], inputs["curate"])
    rows, rejected = span_rows(examples, chunks, "evaluate")
    write_records(draft.data / "rejected.jsonl", rejected)
    if rejected:
        reasons = ", ".join(f"{count} {name}" for name, count in counted(rejected).items())
        context.events.warning(f"Test rows without a span to mark are set aside: {reasons}.")
    if len(rows) < 2:
        raise InputError(
            f"The test set {file} holds {len(rows)} rows whose answer stands in their passage, and "
            "an interval needs at least two.",
            "Give more documents, or raise the share of rows for the test set.",
        )
    return examples, rows


def _students(distill: Artifact) -> list[Source]:
    """The models that distill left. Errors: ModelError if the distilled one is not there."""
    folders = {name: distill.path("models") / name for name in STUDENTS}
    found = [
        Source(name, folder, weights_bytes(folder))
        for name, folder in folders.items()
        if (folder / "config.json").exists()
    ]
    if "distilled" not in {one.name for one in found}:
        raise ModelError(
            f"The distill stage left no student: {folders['distilled']} has no config.json.",
            "Run `potstill verify` on the run, and distill again if it is damaged.",
        )
    return found


def _reader(config: SpanEvaluateConfig, folder: Path) -> SpanReader:
    own = ReaderSettings.of(folder)
    settings = ReaderSettings(
        own.window_tokens, own.window_overlap, own.max_answer_tokens, config.no_answer_threshold
    )
    return SpanReader(folder, settings)


def _asking(reader: Callable[[], SpanReader]) -> Ask:
    return by_spans(reader())


def _writing(config: SpanEvaluateConfig, folder: Path) -> Ask:
    model, tokenizer = load_model(folder, "float32"), load_tokenizer(folder)
    return Writer(model, tokenizer, config.answer_tokens, config.batch_size)


def _speeds(
    config: SpanEvaluateConfig,
    loaders: Mapping[str, Callable[[], Ask]],
    rows: Sequence[SpanRow],
    work: Path,
    context: Context,
) -> dict[str, AnswerSpeed]:
    """Timings on the first rows; measured first, while the process is still small."""
    file = work / "speed.json"
    if not file.exists():
        total = len(loaders) * config.speed_rounds
        speeds = measure_speed(
            loaders,
            rows[: config.speed_questions],
            config.speed_rounds,
            lambda done: context.events.progress(done, total, "timings", step="speed"),
        )
        write_json(file, {name: asdict(speed) for name, speed in speeds.items()})
    return {name: AnswerSpeed(**value) for name, value in read_json(file).items()}


def _answers(
    loaders: Mapping[str, Callable[[], Ask]],
    rows: Sequence[SpanRow],
    work: Path,
    context: Context,
) -> dict[str, list[Answered]]:
    """What every model says; finished ones are read back from `work`."""
    found = {}
    for name, load in loaders.items():
        file = work / f"{name}.json"
        if not file.exists():
            said = load()(rows)
            context.events.progress(len(rows), len(rows), "rows", step=name)
            write_json(file, [asdict(one) for one in said])
            gc.collect()
        found[name] = [Answered(**one) for one in read_json(file)]
    return found


def _nearness(
    config: SpanEvaluateConfig,
    inputs: Mapping[str, Artifact],
    readers: Mapping[str, Callable[[], SpanReader]],
    rows: Sequence[SpanRow],
    work: Path,
    context: Context,
) -> dict[str, list[MarkScores]]:
    """How near each student is to the teacher that taught it, if there was one."""
    signal = SpanSignalConfig(**read_json(inputs["distill"].path("signal.json")))
    if not config.measure_teacher or signal.source == "none":
        return {}
    training = read_records(inputs["curate"].path("train.jsonl"), Example)
    chunks = passages(inputs["ingest"], inputs["curate"])
    marks = marks_in(
        work / "signals.jsonl",
        signal,
        corrected(inputs["correct"], config.teacher),
        rows,
        refusal=refusal_of(span_rows(training, chunks, "evaluate")[0]),
        settings=ReaderSettings.of(inputs["distill"].path("models") / "distilled"),
        dtype=torch.float32,
        tell=lambda done, total: context.events.progress(done, total, "rows", step="distributions"),
    )
    told = [marks[row.id] for row in rows]
    return {name: nearness(load(), rows, told) for name, load in readers.items()}


def _results(
    config: SpanEvaluateConfig,
    sources: Sequence[Source],
    rows: Sequence[SpanRow],
    answers: Mapping[str, Sequence[Answered]],
    scored: Mapping[str, Sequence[ExampleScores]],
    speeds: Mapping[str, AnswerSpeed],
    context: Context,
) -> dict[str, Any]:
    """results.json, as of every student."""
    resampling = Resampling(context.seed, config.resamples, config.level)
    kinds = ["no answer" if row.start is None else "answer" for row in rows]
    found = measured(kinds, scored, resampling)
    models = {
        source.name: {
            "parameters": folder_parameters(source.folder),
            "disk_bytes": source.disk_bytes,
            "reference_disk_bytes": source.reference_bytes,
            **asdict(speeds[source.name]),
            "dtype": "float32",
            "unfinished_answers": sum(not one.finished for one in answers[source.name]),
            "empty_answers": sum(not one.text for one in answers[source.name]),
            **found[source.name],
        }
        for source in sources
    }
    return {
        "task": "spans",
        "models": models,
        **compared(scored, resampling),
        "machine": environment(context.threads),
        "settings": {
            "seed": context.seed,
            "level": config.level,
            "resamples": config.resamples,
            "dtype": "float32",
            "no_answer_threshold": config.no_answer_threshold,
        },
    }


def _prediction(row: SpanRow, name: str, said: Answered, scored: ExampleScores) -> dict[str, Any]:
    """One line of predictions.jsonl."""
    return {
        "id": row.id,
        "model": name,
        "kind": "no answer" if row.start is None else "answer",
        "question": row.question,
        "answer": said.text,
        "golds": list(gold_of_row(row, v2=False).answers),
        **{score: getattr(scored.answer, score) for score in KEPT_SCORES},
        **nearness_of(scored.fidelity),
        "start": said.start,
        "end": said.end,
        "score": said.score,
        "finished": said.finished,
    }
