"""What held-out figures have in common, whether the tokenizers are the same or not.

In: held-out rows, means over them. Out: batches of the rows, the objective's loss. Knows nothing of
models or teachers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from potstill.distill.batches import MicroBatch, RowSet
from potstill.distill.objective import ActiveTokens, Objective
from potstill.distill.packing import split
from potstill.distill.ranks import Ranks
from potstill.distill.terms import Weights

BATCH_TOKENS = 4096
EVERYTHING = ActiveTokens(kd="all", ce="answer")


def batches_of(
    data: RowSet, ranks: Ranks, padding: int, device: torch.device
) -> Iterator[MicroBatch]:
    """This rank's share of the rows, all their tokens active, answers counted as ce."""
    for micro in ranks.share(split(data, data.families, BATCH_TOKENS)):
        yield data.collate(micro, EVERYTHING, padding).to(device)


def loss_of(
    objective: Objective, weights: Weights, means: Mapping[str, float], otherwise: str
) -> float:
    """Divergence and cross-entropy as the objective weighs them; without both, `otherwise`.

    means: by the figures' names, over all tokens (`kd`) and over answers (`kd_answer`).
    """
    if not weights.kd and not weights.ce:
        return means[otherwise]
    value = weights.kd * means["kd_answer" if objective.kd_tokens == "answer" else "kd"]
    return value + weights.ce * means["ce_answer" if objective.ce_tokens == "answer" else "ce"]
