"""A decoder whose layers are read from their files when they are computed, one at a time.

In: a model reference. Out: a transformers model that has its embeddings, final norm and output
layer as needed, and its decoder layers only while they run (`StreamedModel`). Knows nothing of
rows, files of signals or training.

The model is built without weights, and its own `forward` is run: masks, positions and rotary
embeddings are whatever the architecture makes of them. Only the layers' `forward` are changed:

    called as it is      each layer reads its weights, computes and lets them go: slow, for probes
    `compute(n, ...)`    layer n alone is computed, from states that were kept; the others pass on

Reading converts as loading does, so that states are bit for bit those of the resident model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from potstill.errors import ModelError
from potstill.models.body import body_of, layers_of, norm_of, prefixes, put_layers
from potstill.models.cast import cast
from potstill.models.load import Source, model_folder
from potstill.models.skeleton import RESIDENT, ends_of, is_tied, put, skeleton
from potstill.models.weights import WeightFiles

POSITIONS = "transformer.wpe."
"""How the name of GPT-2's learned positions begins: they are read with the norm."""


@dataclass
class _At:
    """The layer that is computed alone, what it is given, and what came out."""

    number: int
    states: Tensor | None
    output: Tensor | None = None


class StreamedModel:
    """A model in evaluation mode and without gradients, most of whose weights stay on disk."""

    def __init__(
        self, source: Source, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        """Errors: ModelError for weights that are missing, or an architecture that has more than
        embeddings, layers, a norm and an output layer."""
        folder = model_folder(source)
        self.device = torch.device(device)
        self.model = cast(skeleton(folder), dtype).eval().requires_grad_(False)
        self.body = body_of(self.model)
        self.files = WeightFiles(folder, self.model)
        self.layers = list(layers_of(self.body))
        self._prefix, self._norm = prefixes(self.model)
        self._names = {layer: f"{self._prefix}{n}." for n, layer in enumerate(self.layers)}
        self._pool: dict[tuple[str, torch.Size], Tensor] = {}
        self._held: int | None = None
        self._at: _At | None = None
        tied = is_tied(self.model, self.files)
        self._check(tied)
        self._load_ends(tied, dtype)
        for number, layer in enumerate(self.layers):
            layer.forward = _Layer(self, number, layer.forward)
        norm = norm_of(self.body)
        norm.forward = _Norm(self, norm.forward)

    @contextmanager
    def hold(self, number: int) -> Iterator[None]:
        """Within it, the layer's weights are in memory."""
        if self._held == number:
            yield
            return
        assert self._held is None, "another layer is in its place"
        empty = self._fill(number)
        self._held = number
        try:
            yield
        finally:
            self.layers[number].load_state_dict(empty, assign=True)
            self._held = None

    @torch.no_grad()
    def compute(self, number: int, inputs: Mapping[str, Any], states: Tensor | None) -> Tensor:
        """[B, L, d]: what layer `number` (from 0) makes of its input; the last one's is normed.

        inputs: of the whole model. states: [B, L, d], what the layer before made of the same
        inputs; None for the first layer, which takes the embeddings.
        """
        found, output = self._alone(self.body, number, inputs, states)
        last: Tensor = found.last_hidden_state
        return last if number == len(self.layers) - 1 else output

    @torch.no_grad()
    def logits(self, inputs: Mapping[str, Any], states: Tensor | None) -> Tensor:
        """[B, L, V]: the model's own, from what the last layer but one made of the inputs."""
        found, _ = self._alone(self.model, len(self.layers) - 1, inputs, states)
        logits: Tensor = found.logits
        return logits

    @contextmanager
    def shortened(self) -> Iterator[Any]:
        """Within it, the model has its first layers alone: at least two, and each kind of them."""
        kinds = getattr(self.body.config, "layer_types", None) or [""] * len(self.layers)
        seen = [(type(layer), kind) for layer, kind in zip(self.layers, kinds, strict=True)]
        count = max(2, 1 + max(seen.index(one) for one in set(seen)))
        put_layers(self.body, self.layers[:count])
        try:
            yield self.model
        finally:
            put_layers(self.body, self.layers)

    def _alone(
        self, module: Any, number: int, inputs: Mapping[str, Any], states: Tensor | None
    ) -> tuple[Any, Tensor]:
        """What the module returns, and what the one layer did."""
        given = dict(inputs)
        if states is not None:  # their shape alone is used, for masks and positions
            del given["input_ids"]
            given["inputs_embeds"] = states
        at = self._at = _At(number, states)
        try:
            with self.hold(number):
                found = module(**given)
        finally:
            self._at = None
        assert at.output is not None
        return found, at.output

    def _fill(self, number: int) -> dict[str, Tensor]:
        """Give a layer its weights, in memory that the layer before had; what it held instead."""
        layer = self.layers[number]
        empty = dict(layer.state_dict())
        filled = {}
        for name, tensor in empty.items():
            key = (name, tensor.shape)
            if key not in self._pool:
                self._pool[key] = torch.empty_like(tensor, device=self.device)
            filled[name] = self._pool[key]
        self.files.read({self._names[layer] + name: one for name, one in filled.items()})
        layer.load_state_dict(filled, assign=True)
        layer.requires_grad_(False)
        return empty

    def _load_ends(self, tied: bool, dtype: torch.dtype) -> None:
        """Norm and output layer, buffers on their device, embeddings where they are the same."""
        state = self.model.state_dict()
        embedding, head = ends_of(self.model)
        wanted = {
            name: torch.empty_like(tensor, device=self.device)
            for name, tensor in state.items()
            if not name.startswith(self._prefix) and name not in (embedding, head)
        }
        source = embedding if tied and self.files.has(embedding) else head
        wanted[source] = torch.empty_like(state[source], device=self.device)
        self.files.read(wanted)
        for name, tensor in wanted.items():
            owner, _, own = name.rpartition(".")
            put(self.model.get_submodule(owner), own, tensor)
        output, table = self.model.get_output_embeddings(), self.model.get_input_embeddings()
        table.padding_idx = None  # which only training asks for, and rows are numbered anew here
        if tied:
            put(output, "weight", wanted[source])
            put(table, "weight", output.weight)
        else:
            table.forward = _Embedding(self, embedding, table, dtype)
        for module in self.model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None and buffer.device.type != "meta":
                    module._buffers[name] = buffer.to(self.device)

    def _check(self, tied: bool) -> None:
        embedding, head = ends_of(self.model)
        state = dict(self.model.state_dict())
        known = (embedding, head, f"{head.removesuffix('weight')}bias")
        others = [
            name
            for name in state
            if name not in known and not name.startswith((self._prefix, self._norm, POSITIONS))
        ]
        if others or norm_of(self.body) is None:
            raise ModelError(
                f"{type(self.model).__name__} has more than layers between its embeddings and its "
                f"output layer ({', '.join(others[:3])}), so it cannot be read layer by layer.",
                RESIDENT,
            )
        if getattr(self.body.config, "num_kv_shared_layers", None):
            raise ModelError(
                f"Layers of {type(self.model).__name__} use keys and values of layers before them, "
                "so they cannot be computed one by one.",
                RESIDENT,
            )
        if tied:
            del state[head if self.files.has(embedding) else embedding]
        missing = [name for name in state if not self.files.has(name)]
        if missing and self.files.spare:
            raise ModelError(
                f"The weights in {self.files.folder} are stored in another form than the model "
                f"runs them in ({self.files.spare[0]} is there, {missing[0]} is not), so they "
                "cannot be read layer by layer.",
                RESIDENT,
            )
        self.files.check(state)


class _Layer:
    """`forward` of a decoder layer."""

    def __init__(self, owner: StreamedModel, number: int, forward: Any) -> None:
        self.owner, self.number, self.forward = owner, number, forward

    def __call__(self, hidden_states: Tensor, *others: Any, **named: Any) -> Any:
        owner, at = self.owner, self.owner._at
        if at is None:
            with owner.hold(self.number):
                return self.forward(hidden_states, *others, **named)
        if self.number != at.number:
            return hidden_states
        given = hidden_states if at.states is None else at.states
        found = self.forward(given, *others, **named)
        if not isinstance(found, Tensor):
            raise ModelError(
                f"The layers of {type(owner.model).__name__} hand on more than hidden states, so "
                "they cannot be computed one by one.",
                RESIDENT,
            )
        at.output = found
        return found


class _Norm:
    """`forward` of the final norm: of no use before the last layer."""

    def __init__(self, owner: StreamedModel, forward: Any) -> None:
        self.owner, self.forward = owner, forward

    def __call__(self, hidden_states: Tensor) -> Any:
        at = self.owner._at
        if at is not None and at.number < len(self.owner.layers) - 1:
            return hidden_states
        return self.forward(hidden_states)


class _Embedding:
    """`forward` of embeddings of which only the rows that are asked for are read."""

    def __init__(self, owner: StreamedModel, name: str, table: Any, dtype: torch.dtype) -> None:
        self.owner, self.name, self.table, self.dtype = owner, name, table, dtype
        self.forward = table.forward

    def __call__(self, input_ids: Tensor) -> Any:
        numbers, places = torch.unique(input_ids, return_inverse=True)
        whole = self.table.weight
        rows = self.owner.files.rows(self.name, numbers, self.dtype).to(input_ids.device)
        put(self.table, "weight", rows)
        try:
            return self.forward(places)
        finally:
            self.table.weight = whole
