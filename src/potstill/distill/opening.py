"""The teacher as the settings want it: in memory, in fewer bits, or read layer by layer.

In: a reference or a loaded model, settings. Out: a `LiveTeacher`, on its device. Knows nothing of
students but their size.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from potstill.core.events import Emitter
from potstill.core.machine import available_memory_bytes
from potstill.distill.batches import Row
from potstill.distill.config import DistillConfig
from potstill.distill.loading import (
    check,
    is_streamed,
    resident_bytes,
    student_parameters,
)
from potstill.distill.material import pick_dtype
from potstill.distill.precision import in_precision
from potstill.distill.ranks import Ranks
from potstill.distill.residence import why_resident
from potstill.distill.signals import LiveTeacher
from potstill.distill.streaming import StreamedTeacher
from potstill.models import adapters, quantised
from potstill.models.device import device_here
from potstill.models.size import expected_parameters


def open_teacher(
    teacher: Any,
    config: DistillConfig,
    rows: Sequence[Row],
    events: Emitter,
    *,
    student: int | None = None,
) -> LiveTeacher:
    """The teacher, in memory or read layer by layer, whatever is set or fits.

    teacher: a reference, or a loaded model, which is changed. rows: on which the loss of a lower
    precision is measured. student: parameters of one that is there already; None: it is cut from
    the teacher. Also makes sure of what the adapters need, before time is spent.
    Errors: TrainingError if something needs the whole teacher, though `streamed` is set;
    MissingExtraError, ModelError if it cannot be loaded or brought into its precision.
    """
    device = device_here()
    if config.adapter != "none":
        quantised.check(adapters.precision_of(config.adapter), "distill.adapter: qlora", device)
    if student is None and config.student.model is not None:
        student = expected_parameters(config.student.model)
    dtype, cuts = pick_dtype(config.precision), student is None
    if not isinstance(teacher, str | Path):
        return LiveTeacher(in_precision(teacher, config, rows, dtype, device, events), dtype)
    parameters = float(expected_parameters(str(teacher)))
    learning = student_parameters(config, parameters) if student is None else float(student)
    free = Ranks.here().first(lambda: _free_bytes(device))
    check(config, cuts=cuts)
    reason = why_resident(config, cuts=cuts)
    needed = resident_bytes(config, parameters, learning, cuts=cuts)
    scarce = free is not None and config.teacher_loading == "auto" and needed > free
    sizes = f"The teacher and the training need about {needed / 1e9:.1f} GB, and "
    sizes += f"{(free or 0) / 1e9:.1f} GB are free"
    if is_streamed(config, parameters, learning, free, cuts=cuts):
        if scarce:
            events.warning(f"{sizes}: the teacher is read layer by layer.")
        return StreamedTeacher(
            str(teacher),
            dtype,
            device,
            lambda done, of: events.progress(done, of, "layers", step="teacher layer by layer"),
        )
    if scarce and reason is not None:
        what, way_out = reason
        events.warning(f"{sizes}. {what}. {way_out}")
    return LiveTeacher(in_precision(teacher, config, rows, dtype, device, events), dtype)


def _free_bytes(device: torch.device) -> int | None:
    """Of a GPU what is free; of a computer's memory this process's share."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    free = available_memory_bytes()
    return None if free is None else free // Ranks.here().count
