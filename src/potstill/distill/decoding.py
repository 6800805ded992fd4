"""Answers of a model to many prompts at once, decoded with keys and values that are kept.

In: a model as it is being trained, prompts as token ids, each with its own draws and limit. Out:
the ids of each answer. What a row is given depends on the model, its prompt and its draws alone,
up to rounding: neither on its batch nor on its place there. Knows nothing of rows or training.

    prompts -> families --beginning once, then ends--> keys, values --+
                                                                      +-- a token a step, all rows
    a row that ends leaves the batch                                  |   moved to the right edge

Each answer's keys and values are written into memory that is claimed once for a batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from potstill.distill import attention
from potstill.distill.families import Family, group, shared_tokens
from potstill.models.body import body_of
from potstill.models.output import output_layer
from potstill.models.sampling import Draw

GOING_ON = 0.75
"""Rows that have ended are taken out of a batch when fewer than this share go on."""


@dataclass(frozen=True)
class Question:
    """One prompt, the draws of its answer, and how many tokens that may have."""

    prompt: Sequence[int]
    draw: Draw
    limit: int

    @property
    def tokens(self) -> int:
        """Of prompt and answer at most."""
        return len(self.prompt) + self.limit


def frozen(student: Any, dtype: torch.dtype) -> Any:
    """A copy to generate with: evaluation mode, no checkpointing, its own attention.

    In fp32 it shares the student's weights, in another type it has weights of its own. The student
    and its state of training stay as they are. Adapters go along.
    """
    weights = {
        # Quantised weights hold codes, which stay as they are.
        id(one): nn.Parameter(one.detach().to(dtype), requires_grad=False)
        if one.is_floating_point()
        else one
        for one in student.parameters()
    }
    model = copy.deepcopy(student, weights).eval()
    attention.unuse(model)
    return model


def batches(questions: Sequence[Question], batch_tokens: int) -> list[list[Family]]:
    """Questions as batches of families that share their prompts' beginnings.

    Rows x longest of a batch stays within `batch_tokens`, unless a single one is longer.
    """
    families = group([one.prompt for one in questions], computed=batch_tokens, in_full=batch_tokens)
    longest = {family: max(questions[one].tokens for one in family) for family in families}
    found: list[list[Family]] = []
    rows = 0
    for family in sorted(families, key=lambda family: (longest[family], family)):
        for part in _cut(family, max(1, batch_tokens // longest[family])):
            rows += len(part)
            if not found or rows * longest[family] > batch_tokens:
                found.append([])
                rows = len(part)
            found[-1].append(part)
    return found


def _cut(family: Family, rows: int) -> Iterator[Family]:
    for first in range(0, len(family), rows):
        yield family[first : first + rows]


@torch.no_grad()
def answers(
    model: Any,
    questions: Sequence[Question],
    ends: Collection[int],
    *,
    vocabulary: int,
    batch_tokens: int,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[list[int]]:
    """Each question's answer as token ids; it ends in one of `ends`, or at its limit without.

    model: in evaluation mode (`frozen`). vocabulary: ids from there on are never drawn.
    """
    found: dict[int, list[int]] = {}
    for batch in batches(questions, batch_tokens):
        order = [number for family in batch for number in family]
        said = _decode(model, questions, batch, frozenset(ends), vocabulary)
        found |= dict(zip(order, said, strict=True))
        progress(len(found), len(questions))
    return [found[number] for number in range(len(questions))]


def _decode(
    model: Any,
    questions: Sequence[Question],
    batch: Sequence[Family],
    ends: Collection[int],
    vocabulary: int,
) -> list[list[int]]:
    """The answers of a batch, in the order of its families' members."""
    body, output = body_of(model), output_layer(model)
    output = output.cut(vocabulary, output.weight.dtype)
    asked = [questions[number] for family in batch for number in family]
    states, cache, mask = _read(body, asked, questions, batch)
    said: list[list[int]] = [[] for _ in asked]
    inside = list(range(len(asked)))
    """Which question each line of the batch belongs to."""
    while True:
        logits = output.logits(states).float()
        drawn = [
            int(asked[one].draw.noisy(line).argmax())
            for one, line in zip(inside, logits, strict=True)
        ]
        for one, token in zip(inside, drawn, strict=True):
            if not _ended(said[one], asked[one], ends):
                said[one].append(token)
        going = [line for line, one in enumerate(inside) if not _ended(said[one], asked[one], ends)]
        if not going:
            return said
        if len(going) < GOING_ON * len(inside):
            chosen = torch.tensor(going, device=mask.device)
            cache.batch_select_indices(chosen)
            mask, inside, drawn = (
                mask[chosen],
                [inside[line] for line in going],
                [drawn[line] for line in going],
            )
        mask = torch.cat([mask, mask.new_ones(len(inside), 1)], 1)
        states = body(
            input_ids=torch.tensor(drawn, device=mask.device).unsqueeze(1),
            attention_mask=mask,
            position_ids=mask.sum(1, keepdim=True) - 1,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]


def _ended(said: Sequence[int], asked: Question, ends: Collection[int]) -> bool:
    return bool(said) and (said[-1] in ends or len(said) >= asked.limit)


def _read(
    body: Any, asked: Sequence[Question], questions: Sequence[Question], batch: Sequence[Family]
) -> tuple[Tensor, Cache, Tensor]:
    """States of the prompts' last tokens [rows, d], keys and values of all of their tokens, and
    which of those columns are a row's own [rows, columns]: prompts end at the right edge."""
    device = next(body.parameters()).device
    width = max(len(one.prompt) for one in asked)
    room = max(one.limit for one in asked)
    alone = [family for family in batch if len(family) == 1]
    together = [family for family in batch if len(family) > 1]
    parts = [tuple(number for (number,) in alone)] if alone else []
    lines = {number: line for line, number in enumerate(n for family in batch for n in family)}
    states: dict[int, Tensor] = {}
    layers: list[_Layer] = []
    for members in [*parts, *together]:
        prompts = [questions[number].prompt for number in members]
        # One token at least is each row's own: its state is asked for.
        beginning = min(shared_tokens(prompts), min(map(len, prompts)) - 1)
        last, kept = _pass(body, prompts, 0 if members in parts else beginning, device)
        layers = layers or [
            _Layer(one.keys, one.values, len(asked), width, room) for one in kept.layers
        ]
        for row, (number, prompt) in enumerate(zip(members, prompts, strict=True)):
            states[lines[number]] = last[row]
            for layer, one in zip(layers, kept.layers, strict=True):
                layer.put(lines[number], one.keys[row], one.values[row], len(prompt))
    mask = torch.zeros(len(asked), width, dtype=torch.int64, device=device)
    for line, one in enumerate(asked):
        mask[line, width - len(one.prompt) :] = 1
    return torch.stack([states[line] for line in range(len(asked))]), Cache(layers=layers), mask


def _pass(
    body: Any, prompts: Sequence[Sequence[int]], beginning: int, device: torch.device
) -> tuple[Tensor, DynamicCache]:
    """Last states [rows, d], and keys and values of prompts that share their beginning.

    Row r's tokens are columns 0 to len(prompts[r]); padding stands behind them, unseen.
    """
    kept = DynamicCache()  # without a configuration: layers with a window keep all tokens too
    if beginning:
        ids = torch.tensor([list(prompts[0][:beginning])], device=device)
        body(input_ids=ids, past_key_values=kept, use_cache=True)
        kept.batch_repeat_interleave(len(prompts))
    own = [list(prompt[beginning:]) for prompt in prompts]
    width = max(map(len, own))
    ids = torch.tensor([one + [0] * (width - len(one)) for one in own], device=device)
    positions = torch.arange(beginning, beginning + width, device=device).expand_as(ids)
    states = body(
        input_ids=ids,
        attention_mask=ids.new_ones(len(own), beginning + width),
        position_ids=positions,
        past_key_values=kept,
        use_cache=True,
    ).last_hidden_state
    return states[torch.arange(len(own)), torch.tensor([len(one) - 1 for one in own])], kept


class _Layer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer; a step writes its column and copies nothing."""

    def __init__(self, keys: Tensor, values: Tensor, rows: int, width: int, room: int) -> None:
        """keys, values: [any, heads, any, d], for sizes and types. width: of the prompts."""
        super().__init__()
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self.filled = width
        # Zero, as what is masked must be finite.
        self._held = [
            one.new_zeros(rows, one.shape[1], width + room, one.shape[3]) for one in (keys, values)
        ]
        self._show()

    def put(self, line: int, keys: Tensor, values: Tensor, length: int) -> None:
        """A prompt's, from [heads, columns, d], moved to the right edge."""
        for held, given in zip(self._held, (keys, values), strict=True):
            held[line, :, self.filled - length : self.filled] = given[:, :length]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Adds [rows, heads, n, d] and returns all columns so far."""
        first, self.filled = self.filled, self.filled + key_states.shape[-2]
        for held, given in zip(self._held, (key_states, value_states), strict=True):
            held[:, :, first : self.filled] = given
        self._show()
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these lines alone."""
        self._held = [one[indices] for one in self._held]
        self._show()

    def _show(self) -> None:
        self.keys, self.values = (one[:, :, : self.filled] for one in self._held)
