"""Models that mark answers in a passage: loaded, begun from an encoder, run over windows.

In: a folder, or a reference to an encoder. Out: …ForQuestionAnswering models in fp32; the logits of
windows. Knows nothing of training, scores or answers.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill.errors import ModelError
from potstill.models.load import load_errors
from potstill.models.spans.windows import Window

HEAD = "qa_outputs."
"""What the names of the weights begin with that an encoder does not have yet."""
AT_ONCE = 16
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def load_span_model(folder: Path) -> Any:
    """The model in fp32, for evaluation. Errors: ModelError if it is not one that marks spans."""
    model, missing = _loaded(folder)
    if missing:
        raise ModelError(
            f"{folder} is no model that marks answers: it has no {missing[0]}.",
            "It takes a …ForQuestionAnswering model; a decoder writes its answers.",
        )
    return model


def begin_span_model(folder: Path, seed: int) -> Any:
    """An encoder with a new head, drawn by `seed`; one that has its head is taken as it is.

    Errors: ModelError for what is no encoder, or whose own weights are not all there.
    """
    torch.manual_seed(seed)
    model, missing = _loaded(folder)
    lost = [name for name in missing if not name.startswith(HEAD)]
    if lost:
        raise ModelError(
            f"The encoder in {folder} is not whole: it has no {lost[0]}.",
            "Use an encoder such as BERT, DistilBERT, RoBERTa or ELECTRA.",
        )
    return model


def _loaded(folder: Path) -> tuple[Any, list[str]]:
    from transformers import AutoModelForQuestionAnswering

    with load_errors(folder):
        model, loading = AutoModelForQuestionAnswering.from_pretrained(
            folder,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    missing = sorted(map(str, loading.get("missing_keys") or ()))
    if mismatched := loading.get("mismatched_keys"):
        raise ModelError(f"The weights in {folder} have other shapes than its config: {mismatched}")
    return model.eval(), missing


def longest_window(config: Any, tokenizer: Any, asked: int) -> int:
    """The tokens of a window that a model of that config can read, at most `asked`."""
    own = getattr(config, "max_position_embeddings", None) or asked
    # RoBERTa's positions begin after its padding's.
    if getattr(config, "model_type", "") in ("roberta", "xlm-roberta", "camembert"):
        own -= config.pad_token_id + 1
    return int(min(asked, own, tokenizer.model_max_length))


def inputs_of(model: Any) -> tuple[str, ...]:
    """Which of ids, mask and segments the model takes."""
    known = inspect.signature(model.forward).parameters
    return tuple(name for name in INPUTS if name in known)


def collate(names: Sequence[str], tokenizer: Any, windows: Sequence[Window]) -> dict[str, Tensor]:
    """The inputs of those names: [windows, longest] int64 each."""
    longest = max(len(one.ids) for one in windows)
    padding = tokenizer.pad_token_id or 0
    ids = torch.full((len(windows), longest), padding)
    segments, mask = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, one in enumerate(windows):
        ids[row, : len(one.ids)] = torch.tensor(one.ids)
        segments[row, : len(one.ids)] = torch.tensor(one.segments)
        mask[row, : len(one.ids)] = 1
    batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments}
    return {name: batch[name] for name in names}


@torch.inference_mode()
def logits_of(
    model: Any, tokenizer: Any, windows: Sequence[Window], at_once: int = AT_ONCE
) -> list[tuple[Tensor, Tensor]]:
    """Start and end logits of each window's own tokens, in fp32, in the windows' order."""
    order = sorted(range(len(windows)), key=lambda number: len(windows[number].ids))
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for some in _parts(order, at_once):
        batch = collate(inputs_of(model), tokenizer, [windows[number] for number in some])
        device = next(model.parameters()).device
        out = model(**{name: value.to(device) for name, value in batch.items()})
        starts, ends = out.start_logits.float().cpu(), out.end_logits.float().cpu()
        if not (starts.isfinite().all() and ends.isfinite().all()):
            raise ModelError(
                "The model that marks answers computes logits that are not finite numbers.",
                "Its weights are damaged or its training diverged: lower distill.learning_rate.",
            )
        for row, number in enumerate(some):
            length = len(windows[number].ids)
            found[number] = starts[row, :length], ends[row, :length]
    return [found[number] for number in range(len(windows))]


def _parts(order: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(order), size):
        yield order[start : start + size]
