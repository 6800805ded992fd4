"""Linear layers in 8 or 4 bits: a model that needs less memory, its other weights as they were.

In: a transformers model. Out: the same model, its linear layers (but the output layer) in int8 or
NF4; or such a model with its weights dequantised. Knows nothing of training or of where models are.

8bit   int8, a scale for each row of the weight. Activations are not rounded, so that a row's states
       do not depend on the rows beside it, as they do in LLM.int8 (arXiv:2208.07339).
4bit   NF4 in blocks of 64 with double quantisation (QLoRA, arXiv:2305.14314), by bitsandbytes.
Both multiply with the dequantised weight, in the type of the activations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.core.extras import require
from potstill.errors import ModelError
from potstill.models.adapter_config import Precision

LEVELS = 127
"""int8 from -127 to 127, the same on both sides."""
IN_RECIPES = (
    "Use distill.teacher_precision: 8bit or full, and distill.adapter: lora; or a bitsandbytes "
    "that fits this machine."
)


class Int8Linear(nn.Module):
    """y = (x Q^T) * scale + bias; Q [out, in] int8, scale [out] = largest |w| of a row / 127."""

    weight: nn.Parameter
    bias: nn.Parameter | None
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / LEVELS
        rounded = (weight / scale.unsqueeze(1)).round().to(torch.int8)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = nn.Parameter(rounded, requires_grad=False)
        self.bias = linear.bias
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out], in x's type."""
        products: Tensor = F.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)
        return products if self.bias is None else products + self.bias.to(x.dtype)

    def dequantised(self) -> Tensor:
        """[out, in] in float32."""
        return self.weight.float() * self.scale.unsqueeze(1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Int8Linear:
        scale = self.scale  # it follows to a device, but not into bf16
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.scale = scale.to(self.weight.device)
        return self


def check(
    precision: Precision,
    purpose: str,
    device: torch.device | str = "cpu",
    *,
    way_out: str = IN_RECIPES,
) -> None:
    """Whether this machine can do it, tried on a small matrix.

    way_out: what to do where it cannot.
    Errors: MissingExtraError if bitsandbytes is not there, ModelError if it does not work here.
    """
    if precision != "4bit":
        return
    try:
        bnb = require("bitsandbytes", "quantised", purpose)
        weight = torch.linspace(-1, 1, 128, device=device).view(2, 64)
        packed, state = bnb.functional.quantize_4bit(weight, quant_type="nf4")
        off = (bnb.functional.dequantize_4bit(packed, state) - weight).abs().max()
    except (RuntimeError, OSError, ImportError, AttributeError, ValueError) as error:
        why = f"{type(error).__name__}: {error}"
        raise _cannot(purpose, device, why, way_out) from error
    if not off < 0.2:  # half of NF4's widest gap is 0.14
        raise _cannot(purpose, device, f"a weight came back {float(off):.2g} off", way_out)


def _cannot(purpose: str, device: torch.device | str, why: str, way_out: str) -> ModelError:
    return ModelError(
        f"{purpose} needs 4-bit weights, which bitsandbytes cannot do on this machine ({device}): "
        f"{why}.",
        way_out,
    )


def linear_layers(model: Any) -> dict[str, nn.Module]:
    """The linear layers by name, in whatever precision; the output layer is none of them.

    Errors: ModelError if there are none.
    """
    output = model.get_output_embeddings()
    found: dict[str, nn.Module] = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Int8Linear) and module is not output
    }
    if not found:
        raise ModelError(
            f"{type(model).__name__} is not made of linear layers [out, in], so it takes neither "
            "adapters nor fewer bits.",
            "GPT-2's layers are of another kind (Conv1D); use a model of a later family.",
        )
    return found


def is_quantised(model: Any) -> bool:
    """Whether any layer is."""
    return any(_kind(module) != "full" for module in model.modules())


@torch.no_grad()
def quantise(
    model: Any, precision: Precision, dtype: torch.dtype, device: torch.device | str | None = None
) -> Any:
    """Bring the linear layers into `precision`, in place, one after the other; returns the model.

    dtype: of the products. device: where to bring each layer; None leaves it where it is. Layers
    that are quantised already stay as they are. Errors: as `check`.
    """
    check(precision, f"{precision} weights", device or "cpu")
    if precision == "full":
        return model
    for name, layer in linear_layers(model).items():
        if not isinstance(layer, nn.Linear) or _kind(layer) != "full":
            continue
        if device is not None:
            layer.to(device)
        made = Int8Linear(layer) if precision == "8bit" else _nf4(layer, dtype)
        _replace(model, name, made)
    # PEFT chooses its layers by it. With `is_quantized` transformers would refuse changes of type
    # that do no harm here.
    model.is_loaded_in_4bit = precision == "4bit"
    return model


@torch.no_grad()
def dequantise(model: Any) -> Any:
    """Put plain linear layers in float32 in place of quantised ones; returns the model."""
    for name, layer in linear_layers(model).items():
        weight = dequantised_weight(layer)
        if weight is None:
            continue
        bias: Any = layer.bias
        plain: Any = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
        plain.weight = nn.Parameter(weight, requires_grad=False)
        plain.bias = None if bias is None else nn.Parameter(bias.float(), requires_grad=False)
        _replace(model, name, plain)
    model.is_loaded_in_4bit = False
    return model


def dequantised_weight(layer: Any) -> Tensor | None:
    """[out, in] in float32, or None if the layer is not quantised."""
    if isinstance(layer, Int8Linear):
        return layer.dequantised()
    if _kind(layer) == "4bit":
        import bitsandbytes

        weight = layer.weight
        found: Tensor = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
        return found.float()
    return None


def weights_in(parameter: Any) -> int:
    """How many weights a parameter stands for; two 4-bit ones are packed into a byte."""
    state = getattr(parameter, "quant_state", None)
    return int(parameter.numel() if state is None else state.shape.numel())


def _kind(module: Any) -> Precision:
    if isinstance(module, Int8Linear):
        return "8bit"
    return "4bit" if type(getattr(module, "weight", None)).__name__ == "Params4bit" else "full"


def _nf4(linear: nn.Linear, dtype: torch.dtype) -> Any:
    import bitsandbytes as bnb

    layer = bnb.nn.Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=dtype,
        compress_statistics=True,
        quant_type="nf4",
        device="meta",
    )
    layer.bias = linear.bias
    layer.weight = bnb.nn.Params4bit(
        linear.weight.detach(),
        requires_grad=False,
        compress_statistics=True,
        quant_type="nf4",
        module=layer,
    ).to(linear.weight.device)
    # Where the hardware has bf16, bitsandbytes would repack the weight at the first evaluation and
    # multiply in bf16 from then on, without a gradient for what comes before: training would stand
    # still after the first validation.
    layer.support_avx512bf16_for_cpu = False
    return layer.train(linear.training)


def _replace(model: Any, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
