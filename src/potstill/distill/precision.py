"""The teacher in the precision that the recipe asks for, and what the lower ones cost it.

In: a teacher, the settings, rows. Out: the teacher on its device, ready to be asked, and the KL
from what it said before to what it says now. Knows nothing of students or training.

The weights are read where they lie in the file and brought into fewer bits layer by layer, so that
the full model need never fit into memory (on a CPU: its pages are the file's own).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.core.events import Emitter
from potstill.distill.batches import Row, evenly
from potstill.distill.config import DistillConfig
from potstill.models import quantised
from potstill.models.cast import cast
from potstill.models.load import load_model

MEASURED_ROWS, MEASURED_TOKENS = 4, 64
"""Rows in even distances, and the first predictions of each, on which the KL is measured."""


def in_precision(
    teacher: Any,
    config: DistillConfig,
    rows: Sequence[Row],
    dtype: torch.dtype,
    device: torch.device,
    events: Emitter,
) -> Any:
    """A reference or a loaded model -> the model in `teacher_precision`, products in `dtype`.

    A loaded one is changed. In lower precision `teacher_kl` is emitted: the mean over some
    predictions of KL(full || lower), nats per token. Errors: MissingExtraError, ModelError.
    """
    named = isinstance(teacher, str | Path)
    if config.teacher_precision == "full":
        model = load_model(teacher) if named else teacher
        return cast(model, dtype).to(device)
    quantised.check(config.teacher_precision, "distill.teacher_precision: 4bit", device)
    model = load_model(teacher, "auto") if named else teacher.eval()
    chosen = [row.ids[: MEASURED_TOKENS + 1] for row in evenly(rows, min(len(rows), MEASURED_ROWS))]
    before = [_says(model, ids) for ids in chosen]
    quantised.quantise(model, config.teacher_precision, dtype, device)
    cast(model, dtype).to(device)
    events.metric("teacher_kl", mean_kl(before, [_says(model, ids) for ids in chosen]))
    return model


def mean_kl(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """KL(before || after) in nats, the mean over all predictions; log probabilities [N, V] each."""
    total = sum(
        float(F.kl_div(log_q.double(), log_p.double(), reduction="sum", log_target=True))
        for log_p, log_q in zip(before, after, strict=True)
    )
    return total / sum(len(one) for one in before)


@torch.no_grad()
def _says(model: Any, ids: Sequence[int]) -> Tensor:
    """Log probabilities after each token but the last: [N, V] in fp32, on the CPU."""
    tokens = torch.tensor([list(ids)], device=next(model.parameters()).device)
    logits = model(input_ids=tokens, use_cache=False).logits[0, :-1]
    log_p: Tensor = F.log_softmax(logits.float(), dim=-1).cpu()
    return log_p
