"""Everything a training needs besides its student: batches that were checked, the teacher's word.

In: a teacher, a student, rows. Out: `Material`: rows and their layout, the plan of steps, the
teacher's signals. Knows nothing of stages, surgery or optimizers.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from potstill.core.events import Emitter
from potstill.core.extras import check_installed
from potstill.distill import mixed, preflight, probe, signals
from potstill.distill.aligned import AlignedTeacher, common_words, source_of
from potstill.distill.batches import Micro, Row, RowSet, evenly
from potstill.distill.config import DistillConfig
from potstill.distill.layout import lay_out
from potstill.distill.lessons import Lessons
from potstill.distill.memory import explained
from potstill.distill.mixture import Teachers
from potstill.distill.packing import plan_steps
from potstill.distill.panel import Panel
from potstill.distill.ranks import Ranks, launched
from potstill.distill.terms import TermLoss
from potstill.errors import TrainingError
from potstill.models import adapters

PADDING = 0
"""Any id with an embedding: no real token ever sees padding."""


Signal = signals.TeacherSignal | AlignedTeacher


@dataclass(frozen=True)
class Material:
    """What every training of a run shares."""

    tokenizer: Any
    """The student's."""
    training: RowSet
    validation: RowSet
    plan: list[list[Micro]]
    vocabulary: int
    dtype: torch.dtype
    signal: Signal
    validation_signal: Signal

    @property
    def signal_kind(self) -> str:
        """`live`, or the kind of the file."""
        one = self.signal.signals[0] if isinstance(self.signal, Teachers) else self.signal
        one = source_of(one)
        return one.format.kind if isinstance(one, signals.CachedTeacher) else "live"


def prepare(
    config: DistillConfig,
    teacher: Any,
    student: Any,
    lessons: Lessons,
    *,
    student_tokenizer: Any = None,
    panel: Panel | None = None,
    digest: str,
    work: Path,
) -> Material:
    """Lay out the rows, plan the steps, check everything, write or open the teacher's signals.

    teacher: a model, or a LiveTeacher or StreamedTeacher of it. student_tokenizer: None: the
    teacher's. panel: the teachers, if there are several; `teacher` is the first then, and the
    others are loaded here.
    digest: what the teacher's signals belong to. work: the folder where they are kept.
    Afterwards the teacher is in evaluation mode, in the precision of the products, and is needed no
    more unless `signal` is a LiveTeacher; `student` is in fp32, for QLoRA in 4 bits. Of several
    processes each calls it with the same; they share the writing of the teacher's signals.
    Errors: TrainingError for what would ruin the result.
    """
    _check_tools(config)
    tokenizer, rows, aligned = lessons.tokenizer, lessons.rows, lessons.aligned
    own_tokenizer = student_tokenizer or tokenizer
    seed, events = lessons.seed, lessons.events
    chosen = _up_to(lessons.validation, config.validation_tokens)
    validation = [lessons.validation[number] for number in chosen]
    teacher_rows = None
    if aligned is not None:
        aligned = (aligned[0], aligned[1].some(chosen))
        teacher_rows = [*aligned[0].rows, *aligned[1].rows]
    dtype = pick_dtype(config.precision)
    live = teacher
    if not isinstance(teacher, signals.LiveTeacher):
        live = signals.LiveTeacher(teacher, dtype)
    # What it is trained in, and compared in before: fp32, or 4-bit below adapters.
    adapters.as_base(student, config.adapter, remember=config.keep_adapter)
    if config.adapter != "none":
        adapters.check_targets(student, config.lora)
    report_truncated([*rows, *validation], config, events)
    vocabulary = preflight.check_models(
        rows=rows,
        validation=validation,
        examples=lessons.examples,
        teacher=live.model,
        student=student,
        teacher_tokenizer=tokenizer,
        student_tokenizer=own_tokenizer,
        teacher_rows=teacher_rows,
    )
    if panel is not None:
        panel.check(live, [*rows, *validation], tokenizer, student)
    training, held_out = lay_out(config, live, student, (rows, validation), aligned, panel, events)
    preflight.check_anything_active(training, config.active)
    plan = plan_steps(
        training,
        step_tokens=config.step_tokens,
        micro_tokens=config.micro_tokens,
        epochs=config.epochs,
        max_tokens=config.max_tokens,
        seed=seed,
    )
    _report_unseen(rows, plan, config, events)
    micros = [micro for step in plan for micro in step]
    preflight.check_batches(
        rows,
        lambda number: training.collate(micros[number], config.active, PADDING),
        len(micros),
        config.active,
    )

    if config.on_policy.used:
        mixed.check(
            student, live.model, tokenizer, training, plan, config, vocabulary, dtype, seed, events
        )

    def cache(
        name: str,
        teacher: signals.LiveTeacher,
        digest: str,
        data: RowSet,
        form: signals.CacheFormat,
    ) -> signals.CachedTeacher:
        return signals.open_cache(
            work / f"teacher-{name}",
            teacher,
            digest,
            data.read_by_teacher,
            form,
            lambda done, of: events.progress(done, of, "tokens", step=f"teacher on {name}"),
            vocabulary=vocabulary if aligned is None else None,
        )

    def read(source: signals.TeacherSignal, data: RowSet, **told: Any) -> Signal:
        if common is None:
            return source
        return AlignedTeacher(source, live.output, data, common, config, **told)

    common = None
    if lessons.words is not None:
        common = common_words(lessons.words, student, live.model)
    with explained(config, lambda: config.micro_tokens):
        form = _format(config, live, training, plan, seed)
        signal: Signal
        truth: Signal | None = None
        if panel is None:
            probed, told = probe.chosen(training, config.active), None
            source = live if form is None else cache("training", live, digest, training, form)
            check = read(source, training, dtype=torch.float32)
            signal = read(source, training, dtype=dtype)
        else:
            kinds = panel.kinds(rows)
            probed = probe.chosen(training, config.active, lambda family: kinds[family[0]])
            signal, truth, told = panel.signals(
                live,
                training,
                held_out,
                form=form,
                record=cache,
                probed=probed,
                vocabulary=vocabulary,
            )
            check = signal
        loss = TermLoss(student, check, config, vocabulary=vocabulary, dtype=torch.float32)
        probe.check_loss(loss, live, training, PADDING, probed, told)
        if truth is None:
            exact = signals.CacheFormat("hidden_bf16")
            known = cache("validation", live, digest, held_out, exact)
            truth = read(known, held_out, dtype=dtype, measuring=True)
    if not (config.active.kd or config.needs_live_teacher):
        signal = truth  # never asked, so the teacher need not stay in memory
    return Material(own_tokenizer, training, held_out, plan, vocabulary, dtype, signal, truth)


def _check_tools(config: DistillConfig) -> None:
    """Errors: MissingExtraError, TrainingError for what the settings need besides Potstill."""
    if launched() > 1 and Ranks.here().count == 1:
        raise TrainingError(
            "This is one of several processes, and they are not one group.",
            "Call it within potstill.distill.ranks.joined().",
        )
    if Ranks.here().count > 1 and config.on_policy.used:
        raise TrainingError(
            "The student's own answers are generated by one process alone.",
            "Train in one process, or set distill.on_policy.share to 0.",
        )
    for name in config.trackers:
        check_installed(name, f"distill.trackers: {name}")
    if config.optimizer == "paged_adamw":
        check_installed("bitsandbytes", "distill.optimizer: paged_adamw", "quantised")
        if not torch.cuda.is_available():
            raise TrainingError(
                "distill.optimizer: paged_adamw needs an NVIDIA GPU, and CUDA is not available.",
                "Set distill.optimizer: auto, which takes PyTorch's own AdamW here.",
            )
    compiler = os.environ.get("CXX", "g++")  # where torch.compile looks
    if config.compile and not torch.cuda.is_available() and shutil.which(compiler) is None:
        raise TrainingError(
            f"distill.compile needs a C++ compiler, and {compiler} is not found.",
            "Install one, name it in the environment variable CXX, or set distill.compile: false.",
        )


def check_there_are_rows(rows: Sequence[Row], validation: Sequence[Row]) -> None:
    """Errors: TrainingError if there is nothing to train on or to measure with."""
    if not rows or not validation:
        raise TrainingError(
            f"There are {len(rows)} training rows and {len(validation)} validation rows; "
            "both are needed.",
            "Add documents, ask for more questions per chunk, or raise the validation share.",
        )


def _up_to(rows: Sequence[Row], tokens: int) -> list[int]:
    """Rows in even distances, as many as `tokens` allow; at least one if there is one."""
    total = sum(len(row.ids) for row in rows)
    count = len(rows) if total <= tokens else max(1, len(rows) * tokens // total)
    return evenly(range(len(rows)), count)


def _format(
    config: DistillConfig,
    live: signals.LiveTeacher,
    training: RowSet,
    plan: Sequence[Sequence[Micro]],
    seed: int,
) -> signals.CacheFormat | None:
    """The file that the teacher's signals are kept in; None: they are not kept."""
    if not config.active.kd or config.needs_live_teacher or config.signal == "live":
        return None
    if config.on_policy.used:
        return None  # what the student will say is in no file
    if config.signal != "auto":
        return signals.CacheFormat(
            config.signal, config.signal_count, temperature=config.temperature, seed=seed
        )
    form = signals.CacheFormat("hidden_bf16")
    planned = sum(len(family) for step in plan for micro in step for family in micro)
    size = signals.cache_bytes(training.read_by_teacher, int(live.output.weight.shape[1]), form)
    seen_again = planned > len(training.rows) and size <= signals.LARGEST_CACHE
    return form if seen_again or live.streamed else None


def report_truncated(rows: Sequence[Row], config: DistillConfig, events: Emitter) -> None:
    """Count rows that were cut, and say so."""
    cut = sum(row.truncated for row in rows)
    events.metric("truncated_rows", cut)
    if cut:
        events.warning(
            f"{cut} of {len(rows)} rows are longer than {config.sequence_tokens} tokens; "
            "their ends, with the answers, are cut off."
        )


def _report_unseen(
    rows: Sequence[Row], plan: Sequence[Sequence[Micro]], config: DistillConfig, events: Emitter
) -> None:
    """A cap on tokens that was right for few rows silently leaves out many."""
    seen = {row for step in plan for micro in step for family in micro for row in family}
    if len(seen) < len(rows) and config.epochs >= 1:
        events.warning(
            f"distill.max_tokens ends the training before {len(rows) - len(seen)} of {len(rows)} "
            "rows are seen once."
        )


def pick_optimizer(config: DistillConfig, *, cuda: bool) -> str:
    """The optimizer's name, as transformers' `TrainingArguments.optim` has it."""
    paged = config.optimizer == "paged_adamw"
    if config.optimizer == "auto":
        paged = cuda and config.adapter == "qlora"
    return "paged_adamw_32bit" if paged else "adamw_torch_fused"


def pick_dtype(precision: str) -> torch.dtype:
    """The matrix products' type; auto is bf16 where the hardware multiplies bf16 itself."""
    if precision == "auto":
        if torch.cuda.is_available():
            fast = torch.cuda.is_bf16_supported()
        else:
            known = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
            fast = bool(known())
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if precision == "bf16" else torch.float32
