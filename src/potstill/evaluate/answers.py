"""Answers of many prompts at once, starting from prompts that were already read.

In: a model, each prompt's attention cache and first token. Out: answers as token ids, greedy or
drawn.
Knows nothing of gold answers or scores.

The prompts' caches have different lengths, so they are padded on the left to one batch; padded
places are masked and each row keeps its own positions, so a row's answer does not depend on
its neighbours (up to rounding).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from potstill.models.prefix_reader import Layers, layers_of
from potstill.models.sampling import Draw


@dataclass(frozen=True)
class ReadPrompt:
    """A prompt whose states are known: its cache, its length, and the answer's first token."""

    layers: Layers
    length: int
    first: int
    draw: Draw | None = None
    """What chooses its next tokens; None: always the likeliest."""


@dataclass(frozen=True)
class Answer:
    """Generated ids without the end token; `finished` is False if the limit cut it."""

    ids: list[int]
    finished: bool


def write_answers(
    model: Any, prompts: Sequence[ReadPrompt], ends: frozenset[int], limit: int, vocabulary: int
) -> list[Answer]:
    """The chosen token at each step until an end token or `limit` tokens.

    vocabulary: ids from here on are padding of the output layer and are never chosen.
    """
    longest = max(prompt.length for prompt in prompts)
    cache = DynamicCache(_joined(prompts, longest))
    device = prompts[0].layers[0][0].device
    lengths = torch.tensor([prompt.length for prompt in prompts], device=device)
    mask = (torch.arange(longest, device=device) >= (longest - lengths)[:, None]).long()
    tokens = torch.tensor([prompt.first for prompt in prompts], device=device)
    answers: list[list[int]] = [[] for _ in prompts]
    finished = [False] * len(prompts)
    rows = list(range(len(prompts)))  # which answer each place of the batch writes
    for step in range(limit):
        for row, token in zip(rows, tokens.tolist(), strict=True):
            finished[row] = finished[row] or token in ends
            if not finished[row]:
                answers[row].append(token)
        going = [place for place, row in enumerate(rows) if not finished[row]]
        if not going or step == limit - 1:
            break
        if 2 * len(going) <= len(rows):  # one long answer must not cost a whole batch
            rows = [rows[place] for place in going]
            kept = torch.tensor(going, device=device)
            lengths, mask, tokens = lengths[kept], mask[kept], tokens[kept]
            cache = DynamicCache([(keys[kept], values[kept]) for keys, values in layers_of(cache)])
        mask = functional.pad(mask, (0, 1), value=1)
        logits = model(
            input_ids=tokens[:, None],
            attention_mask=mask,
            position_ids=(lengths + step)[:, None],
            past_key_values=cache,
            use_cache=True,
        ).logits
        tokens = _chosen(logits[:, -1, :vocabulary].float(), [prompts[row].draw for row in rows])
    return [Answer(ids, done) for ids, done in zip(answers, finished, strict=True)]


def _chosen(logits: Tensor, draws: Sequence[Draw | None]) -> Tensor:
    """The next token of each row: its draw's, or the likeliest. [rows, vocabulary] -> [rows]."""
    if not any(draws):
        return logits.argmax(-1)
    noisy = [
        one if draw is None else draw.noisy(one) for one, draw in zip(logits, draws, strict=True)
    ]
    return torch.stack(noisy).argmax(-1)


def _joined(prompts: Sequence[ReadPrompt], longest: int) -> Layers:
    """One cache of all prompts: each padded on the left to `longest` positions."""

    def column(layer: int, part: int) -> Tensor:
        return torch.cat(
            [
                functional.pad(prompt.layers[layer][part], (0, 0, longest - prompt.length, 0))
                for prompt in prompts
            ]
        )

    return [(column(layer, 0), column(layer, 1)) for layer in range(len(prompts[0].layers))]
