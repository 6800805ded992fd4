"""An encoder that marks answers in a passage (BERT for questions) as ONNX files, fp32 and int8.

In: the folder of a `…ForQuestionAnswering` model. Out: `model.onnx`, `model-int8.onnx`, and how
near each is to PyTorch, as ONNX Runtime reads it back. Knows nothing of decoders, which go out as
GGUF.

int8 is ONNX Runtime's dynamic quantisation: weights a channel at a time, activations as they come.
A file that is not the model any more is refused, and none has a name before it was compared.
"""

from __future__ import annotations

import inspect
import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from potstill.core.extras import require
from potstill.core.files import disk_errors
from potstill.core.scoring import bootstrap
from potstill.errors import InputError, ModelError
from potstill.export.chain import Allowance, judged
from potstill.models.load import load_tokenizer, quiet
from potstill.models.spans.backends import OUTPUTS, open_session
from potstill.models.spans.model import load_span_model

OPSET = 18
KINDS = ("fp32", "int8")
ALLOWANCES = {"fp32": Allowance(1e-4, 0.99), "int8": Allowance(0.5, 0.8)}
"""Highest KL a position's distribution may have, and the least share of equal spans, by kind."""
Pair = tuple[str, str]
"""A question and its passage."""


def export_span_model(
    folder: Path,
    target: Path,
    pairs: Sequence[Pair],
    *,
    allowances: Mapping[str, Allowance] = ALLOWANCES,
    max_tokens: int = 512,
    seed: int = 17,
    resamples: int = 2000,
    level: float = 0.95,
) -> dict[str, dict[str, Any]]:
    """Write both files below `target`, each compared with PyTorch on `pairs` first.

    Returns by kind: file, disk_bytes, `kl` (of the start's and of the end's distribution over the
    tokens, their mean, in nats) and `agreement` (share of pairs with the same most likely span),
    each with its interval, and the allowance. Errors: ModelError for a model that cannot be
    written or a file that is not the model any more; InputError for fewer than two pairs;
    MissingExtraError; StoreError for a disk that is full.
    """
    for module in ("onnx", "onnxscript", "onnxruntime"):
        require(module, "onnx", "Writing ONNX files")
    if len(pairs) < 2:
        raise InputError(
            f"{len(pairs)} questions are too few to compare an ONNX file on.", "Give at least two."
        )
    tokenizer, model = load_tokenizer(folder), load_span_model(folder)
    batches = [_encoded(model, tokenizer, [pair], max_tokens) for pair in pairs]
    with torch.no_grad():
        wanted = [_of_model(model, batch) for batch in batches]
    target.mkdir(parents=True, exist_ok=True)
    example = _encoded(model, tokenizer, pairs[:2], max_tokens)
    files = {"fp32": target / "model.onnx", "int8": target / "model-int8.onnx"}
    writers: dict[str, Callable[[Path], None]] = {
        "fp32": lambda part: _write(model, example, part),
        "int8": lambda part: _quantise(files["fp32"], part),
    }
    found = {}
    for kind in KINDS:
        part = target / f".{files[kind].name}.part"
        try:
            with disk_errors(files[kind], "write"):
                writers[kind](part)
            hop = _compared(part, batches, wanted, seed, resamples, level)
            named = {"from": "PyTorch", "to": files[kind].name, "compared_with": "PyTorch"}
            found[kind] = {
                "file": files[kind].name,
                "disk_bytes": part.stat().st_size,
                **judged({**named, **hop}, allowances[kind]),
            }
            os.replace(part, files[kind])
        finally:
            part.unlink(missing_ok=True)
    return found


class _Spans(nn.Module):
    """The model with plain tensors in and out."""

    def __init__(self, model: Any, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, tuple(names)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Start and end logits, [batch, tokens] each."""
        found = self.model(**dict(zip(self.names, tensors, strict=True)))
        return found.start_logits, found.end_logits


def _encoded(model: Any, tokenizer: Any, pairs: Sequence[Pair], limit: int) -> dict[str, Tensor]:
    """Token ids, mask and, where the model has them, segments: [batch, tokens] int64 each."""
    questions, passages = zip(*pairs, strict=True)
    limit = min(limit, getattr(model.config, "max_position_embeddings", limit))
    batch = tokenizer(
        list(questions),
        list(passages),
        truncation="only_second",
        max_length=limit,
        padding=len(pairs) > 1,
        return_tensors="pt",
    )
    known = inspect.signature(model.forward).parameters
    return {name: batch[name] for name in sorted(batch) if name in known}


def _write(model: Any, example: Mapping[str, Tensor], out: Path) -> None:
    names = list(example)
    batch, tokens = torch.export.Dim("batch", min=1), torch.export.Dim("tokens", min=2)
    try:
        with warnings.catch_warnings(), quiet():
            warnings.simplefilter("ignore")  # the exporter's own, of its own parts
            torch.onnx.export(
                _Spans(model, names),
                tuple(example.values()),
                str(out),
                input_names=names,
                output_names=list(OUTPUTS),
                dynamic_shapes=(tuple({0: batch, 1: tokens} for _ in names),),
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except OSError:
        raise
    except Exception as error:  # the exporter raises what it meets inside; all mean the same here
        raise ModelError(
            f"{type(model).__name__} cannot be written as ONNX: "
            f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300]}",
            "Use the safetensors, which transformers reads.",
        ) from error


def _quantise(source: Path, out: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # It advises a preparation that is for pictures.
    logging.disable(logging.WARNING)
    try:
        quantize_dynamic(source, out, per_channel=True, weight_type=QuantType.QInt8)
    finally:
        logging.disable(logging.NOTSET)


def _of_model(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Log-probabilities of a pair's tokens as start and as end: [2, tokens]."""
    found = model(**batch)
    return torch.log_softmax(torch.cat([found.start_logits, found.end_logits]).float(), dim=-1)


def _compared(
    file: Path,
    batches: Sequence[Mapping[str, Tensor]],
    wanted: Sequence[Tensor],
    seed: int,
    resamples: int,
    level: float,
) -> dict[str, Any]:
    session = open_session(file)
    try:
        names = [one.name for one in session.get_inputs()]
        answers = [
            session.run(list(OUTPUTS), {name: batch[name].numpy() for name in names})
            for batch in batches
        ]
    except Exception as error:
        raise ModelError(
            f"ONNX Runtime cannot run what was written: {str(error).strip().splitlines()[0][:300]}"
        ) from error
    kls, same = [], []
    for ours, theirs in zip(wanted, answers, strict=True):
        logits = torch.from_numpy(theirs[0]), torch.from_numpy(theirs[1])
        found = torch.log_softmax(torch.cat(logits).float(), dim=-1)
        if not found.isfinite().all():
            raise ModelError("The ONNX file says what is not a number.")
        kls.append(float(torch.linalg.vecdot(ours.exp(), ours - found).mean()))
        same.append(float(span_of(ours) == span_of(found)))
    return {
        "kl": bootstrap(kls, seed, resamples, level).as_dict(),
        "agreement": bootstrap(same, seed, resamples, level).as_dict(),
        "pairs": len(batches),
    }


def span_of(log_probabilities: Tensor) -> tuple[int, int]:
    """The most likely span (start <= end) of [2, tokens]; the first of equal ones."""
    starts, ends = log_probabilities
    sums = (starts[:, None] + ends[None, :]).triu()
    allowed = torch.ones_like(sums, dtype=torch.bool).triu()
    best = int(sums.masked_fill(~allowed, -torch.inf).argmax())
    return divmod(best, len(ends))
