"""How near one model's words are to another's, on a few predictions.

In: models with the same vocabulary, token ids. Out: the mean forward KL. Knows nothing of training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from potstill.errors import ModelError
from potstill.models.body import body_of
from potstill.models.output import OutputLayer, output_layer, summed_kl

MEASURED = 1024
"""Predictions at most; the output layer is the dear part of them."""


@torch.no_grad()
def kl(teacher: Any, student: Any, batches: Sequence[Tensor], measured: int = MEASURED) -> float:
    """KL(teacher || student) in nats a token, over predictions in even distances.

    batches: token ids [B, L] each, without padding. Errors: ModelError if there are none.
    """
    total = sum(ids.numel() for ids in batches)
    if not total:
        raise ModelError("There is no calibration text to compare the models on.")
    stride = math.ceil(total / measured)
    whole, output = (output_layer(model).detached() for model in (teacher, student))
    found, count, passed = 0.0, 0, 0
    for ids in batches:
        first = (stride - 1 - passed) % stride
        passed += ids.numel()
        states = [
            body_of(model)(
                input_ids=ids.to(model.device), use_cache=False
            ).last_hidden_state.flatten(0, 1)[first::stride]
            for model in (teacher, student)
        ]
        found += summed_kl(partial(_said, whole, states[0]), output, states[1])
        count += len(states[0])
    return found / count


def _said(output: OutputLayer, states: Tensor, some: slice) -> Tensor:
    return output.log_probabilities(states[some])
