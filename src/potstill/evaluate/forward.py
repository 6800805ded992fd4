"""A model for measuring: where it computes, its output layer, whether it can be measured at all.

In: a causal language model, or where it lies. Out: the model on its device, float32 logits of
chosen rows; ModelError for one whose logits this way of reading would get wrong. Knows nothing of
scores or answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from potstill.errors import ModelError
from potstill.models.device import device_here
from potstill.models.load import Source, load_model
from potstill.models.output import OutputLayer, output_layer
from potstill.models.prefix_reader import PrefixReader

_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 6e-2}


def head_of(model: Any, vocabulary: int) -> OutputLayer:
    """A model's output layer in float32, cut to the words of the tokenizer.

    Rows that no token has (padding to a round number) are not words, and their logits would
    distort every probability. Errors: ModelError if it has fewer.
    """
    layer = output_layer(model).detached()
    if layer.words < vocabulary:
        raise ModelError(
            f"The model's output layer has {layer.words} rows for a vocabulary of {vocabulary}.",
            "The model and its tokenizer do not belong together.",
        )
    return layer.cut(vocabulary, torch.float32)


def load_here(source: Source, dtype: torch.dtype | str = torch.float32) -> Any:
    """A model where it is measured: on the GPU, if there is one."""
    return load_model(source, dtype).to(device_here())


def check_model(model: Any, head: OutputLayer, ids: Sequence[int], name: str) -> None:
    """Refuse a model that this file would measure wrongly.

    The last logits by way of a split read and `head` must equal the model's own. They do not
    if it changes its logits in a way that is not known, or keeps a state that cannot be cut at
    any position. Errors: ModelError, also for logits that are not numbers.
    """
    probe = list(ids[:64])
    half = len(probe) // 2
    reader = PrefixReader(model)
    reader.read(probe[: half + 1], 0)
    ours = head.logits(reader.read(probe, half)[-1:])
    own = (
        model(input_ids=torch.tensor([probe], device=model.device))
        .logits[0, -1:, : head.words]
        .float()
    )
    if not (torch.isfinite(ours).all() and torch.isfinite(own).all()):
        raise not_finite(name)
    worst = float((ours - own).abs().max())
    if worst > _TOLERANCE[model.dtype] * max(1.0, float(own.abs().max())):
        raise ModelError(
            f"The {name} model cannot be measured: its logits differ by {worst:.3g} from what its "
            "output layer gives.",
            "Models that are not attention-only, or change their logits in a way of their own, "
            "are not supported here.",
        )


def not_finite(name: str) -> ModelError:
    """The error for a model that computes NaN or infinity."""
    return ModelError(
        f"The {name} model computes logits that are not finite numbers.",
        "Its weights are damaged or its training diverged: lower distill.learning_rate, or use "
        "dtype float32.",
    )
