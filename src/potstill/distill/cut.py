"""Which of the teacher's layers the student does without, measured on its training rows.

In: a teacher, rows, settings. Out: the layers and what was measured, as plain values. Knows
nothing of stages or of training.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill.core.events import Emitter
from potstill.core.files import read_json, write_json
from potstill.distill.batches import Row, evenly
from potstill.distill.config import StudentConfig
from potstill.models import surgery
from potstill.models.load import Source, load_model
from potstill.models.output import output_layer
from potstill.models.skeleton import load_without


def choose_layers(
    settings: StudentConfig, teacher: Any, rows: Sequence[Row], work: Path, events: Emitter
) -> dict[str, Any]:
    """Which layers to drop (`dropped`, from 0) and why; measured once and kept in `work`."""
    done = work / "surgery.json"
    if done.exists():
        found: dict[str, Any] = read_json(done)
        return found
    count = settings.drop_layers
    if count is None:
        count = surgery.drops_for_ratio(teacher, settings.parameters_ratio)
    device = output_layer(teacher).weight.device
    calibration = [ids.to(device) for ids in _calibration(rows, settings.calibration_tokens)]
    events.progress(0, max(1, count), "layers", step="surgery")
    influence = surgery.layer_influence(teacher, calibration)
    removals: list[surgery.Dropped] = []
    if settings.method == "greedy":
        removals = surgery.greedy_drops(
            teacher,
            calibration,
            count,
            lambda at, of: events.progress(at, of, "layers", step="surgery"),
        )
        dropped = sorted(removal.layer for removal in removals)
    else:
        dropped = surgery.least_influential(influence, count)
    result = {
        "method": settings.method,
        "layers": len(influence),
        "dropped": dropped,
        "influence": [round(value, 6) for value in influence],
        "removals": [{"layer": removal.layer, "kl": round(removal.kl, 6)} for removal in removals],
        "calibration_tokens": sum(ids.numel() for ids in calibration),
        "parameters": {"teacher": surgery.parameters_of(teacher)},
    }
    write_json(done, result)
    return result


def cut_student(teacher: Source, dropped: Sequence[int], *, streamed: bool) -> Any:
    """The teacher in fp32 without these layers; streamed: they are not read either."""
    if streamed:
        return load_without(teacher, dropped)
    return surgery.drop_layers(load_model(teacher), dropped)


def _calibration(rows: Sequence[Row], tokens: int) -> list[Tensor]:
    """Whole rows in even distances, one a batch, up to `tokens`; the last one is cut to fit."""
    mean = sum(len(row.ids) for row in rows) / len(rows)
    count = min(len(rows), max(1, round(tokens / mean)))
    chosen, left = [], tokens
    for row in evenly(rows, count):
        ids = row.ids[:left]
        left -= len(ids)
        if len(ids) > 1:
            chosen.append(torch.tensor([ids]))
    return chosen
