"""The distill stage of a student that marks answers: teacher's distributions, two trainings.

In: curated rows and the chunks they are about. Out: models `undistilled`, `distilled` and
`finetuned`, signals.jsonl, rejected.jsonl, and what was measured on the way. Knows nothing of how
rows were made.

    encoder + new head ----> models/undistilled
                       +---> models/distilled   the rows' spans, and the teacher's distributions
                       +---> models/finetuned   the rows' spans alone, for the same steps

With `signal.source: none` there is one training, and it is `distilled`: the teacher taught by the
rows that it wrote. Each part leaves a mark in `draft.work`, and is not done again after a kill.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from potstill.core.files import read_json, read_records, write_json, write_records
from potstill.core.stage import Artifact, Context, Draft
from potstill.distill.extractive.config import SpanDistillConfig
from potstill.distill.extractive.lessons import Lesson, lessons_of, plan
from potstill.distill.extractive.training import Goal, SpanTraining
from potstill.distill.material import pick_dtype
from potstill.distill.memory import raise_malloc_thresholds
from potstill.distill.outcome import COMPARED, DISTILLED, Trained
from potstill.errors import TrainingError
from potstill.models.corrected import corrected
from potstill.models.encoder import encoder_folder
from potstill.models.load import load_tokenizer
from potstill.models.save import save_model
from potstill.models.spans.marks import Marks
from potstill.models.spans.model import begin_span_model, longest_window
from potstill.models.spans.reader import ReaderSettings
from potstill.models.spans.rows import SpanRow, counted, passages, span_rows
from potstill.models.spans.scorer import refusal_of
from potstill.models.spans.teachers import marks_in
from potstill.records import Chunk, Example, Rejected


def run(
    config: SpanDistillConfig, inputs: Mapping[str, Artifact], draft: Draft, context: Context
) -> None:
    """Run the stage; goes on from whatever a killed run left in the draft.

    Errors: TrainingError without rows; ModelError for a student or teacher that is none.
    """
    raise_malloc_thresholds()
    torch.set_num_threads(context.threads)
    training, validation, rejected = _rows(
        inputs["curate"], passages(inputs["ingest"], inputs["curate"])
    )
    write_records(draft.data / "rejected.jsonl", rejected)
    if rejected:
        reasons = ", ".join(f"{count} {name}" for name, count in counted(rejected).items())
        context.events.warning(f"Rows without a span to mark are set aside: {reasons}.")
    _check_there_are_rows(training, validation, rejected)
    folder = encoder_folder(config.student.model)
    marks = _marks(config, [*training, *validation], inputs, draft, context)
    tokenizer = load_tokenizer(folder)
    student = begin_span_model(folder, context.seed)
    window = longest_window(student.config, tokenizer, config.window_tokens)
    parts = [
        lessons_of(
            rows,
            marks,
            tokenizer,
            window_tokens=window,
            window_overlap=min(config.window_overlap, window // 3),
            temperature=config.temperature,
        )
        for rows in (training, validation)
    ]
    save_model(student, tokenizer, draft.data / "models" / "undistilled")
    parameters = sum(one.numel() for one in student.parameters())
    write_json(draft.data / "surgery.json", {"parameters": {"student": parameters}})
    del student
    steps = plan(len(parts[0]), config.epochs, config.batch_size, context.seed)
    rows_alone = Goal(config.ce_weight or 1.0, 0.0)
    taught = Goal(config.ce_weight, config.kd_weight, config.temperature)
    goals = {DISTILLED: taught if config.taught else rows_alone}
    goals |= {COMPARED: Goal(1.0, 0.0)} if config.taught and config.baseline else {}
    trained: dict[str, Trained] = {}
    for name, goal in goals.items():
        first = trained.get(DISTILLED)
        trained[name] = _train_once(
            name,
            goal,
            config,
            folder,
            parts,
            steps,
            draft,
            context,
            last_step=first.steps if first else len(steps),
            patience=0 if first else config.patience,
        )
    for model in (draft.data / "models").iterdir():
        settings_of(config).save(model)
    write_json(draft.data / "signal.json", config.signal.model_dump(mode="json"))
    _write_results(config, trained, training, validation, parts[0], steps, rejected, marks, draft)


def settings_of(config: SpanDistillConfig) -> ReaderSettings:
    """How the student is trained to read, as its folder says it."""
    return ReaderSettings(config.window_tokens, config.window_overlap, config.max_answer_tokens)


def _rows(
    curate: Artifact, chunks: Mapping[str, Chunk]
) -> tuple[list[SpanRow], list[SpanRow], list[Rejected]]:
    training, rejected = span_rows(
        read_records(curate.path("train.jsonl"), Example), chunks, "distill"
    )
    validation, more = span_rows(
        read_records(curate.path("validation.jsonl"), Example), chunks, "distill"
    )
    return training, validation, [*rejected, *more]


def _check_there_are_rows(
    training: Sequence[SpanRow], validation: Sequence[SpanRow], rejected: Sequence[Rejected]
) -> None:
    if not training or not validation:
        raise TrainingError(
            f"{len(training)} training rows and {len(validation)} validation rows have an answer "
            f"that stands in their passage; both are needed, and {len(rejected)} have none.",
            "Use generate.kinds with answers copied from the passage (focus or extractive), more "
            "documents, or rows with a context.",
        )


def _marks(
    config: SpanDistillConfig,
    rows: Sequence[SpanRow],
    inputs: Mapping[str, Artifact],
    draft: Draft,
    context: Context,
) -> dict[str, Marks]:
    """What the teacher says of each row; nothing if it is not asked."""
    if not config.taught:
        return {}
    found = marks_in(
        draft.data / "signals.jsonl",
        config.signal,
        corrected(inputs["correct"], config.teacher),
        rows,
        refusal=refusal_of(rows),
        settings=settings_of(config),
        dtype=pick_dtype(config.precision),
        tell=lambda done, total: context.events.progress(done, total, "rows", step="teacher"),
    )
    told = [(row, found[row.id]) for row in rows if found[row.id].spans]
    if not told:
        raise TrainingError(
            "The teacher has no distribution over the spans of any row.",
            "Its context may be too short for the rows' passages: lower ingest.chunk_tokens.",
        )
    same = sum(marks.likeliest == (row.start, row.end) for row, marks in told)
    context.events.metric("teacher_agreement", same / len(told))
    context.events.metric("teacher_coverage", sum(one.coverage for _, one in told) / len(told))
    return found


def _train_once(
    name: str,
    goal: Goal,
    config: SpanDistillConfig,
    encoder: Path,
    parts: Sequence[Sequence[Lesson]],
    steps: Sequence[Sequence[int]],
    draft: Draft,
    context: Context,
    *,
    last_step: int,
    patience: int,
) -> Trained:
    """Train and save one model, or read what came of it if that was done before a kill."""
    mark, target = draft.work / f"{name}.json", draft.data / "models" / name
    if mark.exists() and target.is_dir():
        return Trained(**read_json(mark))
    work = draft.work / name
    training = SpanTraining(
        begin_span_model(encoder, context.seed),
        load_tokenizer(encoder),
        parts[0],
        parts[1],
        steps,
        goal,
        config=config,
        dtype=pick_dtype(config.precision),
        name=name,
        work=work,
        tensorboard=draft.data / "tensorboard" / name,
        events=context.events,
    )
    trained = training.run(last_step, patience, context.seed)
    write_json(mark, dataclasses.asdict(trained))
    save_model(training.model.eval(), training.tokenizer, target)
    shutil.rmtree(work, ignore_errors=True)  # checkpoints; the mark says that they are not needed
    return trained


def _write_results(
    config: SpanDistillConfig,
    trained: Mapping[str, Trained],
    training: Sequence[SpanRow],
    validation: Sequence[SpanRow],
    lessons: Sequence[Lesson],
    steps: Sequence[Sequence[int]],
    rejected: Sequence[Rejected],
    marks: Mapping[str, Marks],
    draft: Draft,
) -> None:
    write_json(draft.data / "history.json", {name: one.history for name, one in trained.items()})
    write_json(
        draft.data / "training.json",
        {
            "rows": len(training),
            "windows": len(lessons),
            "windows_without_answer": sum(one.target == (0, 0) for one in lessons),
            "rows_without_answer": sum(row.start is None for row in training),
            "validation_rows": len(validation),
            "taught_rows": sum(bool(marks[row.id].spans) for row in training if row.id in marks),
            "rejected_rows": len(rejected),
            "precision": str(pick_dtype(config.precision)).removeprefix("torch."),
            "signal": config.signal.source,
            "learning_rate": config.learning_rate,
            "planned_steps": len(steps),
            "models": {name: one.summary for name, one in trained.items()},
        },
    )
