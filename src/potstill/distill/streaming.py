"""A teacher that is larger than memory: its states computed layer by layer for many batches.

In: a model reference, rows in blocks of micro-batches. Out: the same states as those of a resident
teacher, bit for bit, and so the same files of signals. Knows nothing of formats or training.

    for each group of blocks:                          GROUP_BYTES of states at most
        for each layer:                                its weights are read once
            for each micro-batch of the group:         states of the layer before -> of this one

Micro-batches are those of `recording.py`. States between two layers lie on disk (`spill.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill.distill.batches import Micro, MicroBatch, Row, RowSet
from potstill.distill.families import Family
from potstill.distill.loading import GROUP_BYTES
from potstill.distill.recording import EVERY, micros_of
from potstill.distill.signals import LiveTeacher
from potstill.distill.spill import Spill, check_room
from potstill.models.load import Source
from potstill.models.output import output_layer
from potstill.models.streamed import StreamedModel

Report = Callable[[int, int], None]


class StreamedTeacher(LiveTeacher):
    """A teacher whose decoder layers are in memory one at a time.

    `model` runs like any other, but reads all layers for each call: it is for probes. Caches are
    computed with one reading of the weights a group.
    """

    streamed = True

    def __init__(
        self,
        source: Source,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        report: Report = lambda done, total: None,
    ) -> None:
        """report(done, total): layers, of all groups. Errors: ModelError of `StreamedModel`."""
        self.layers = StreamedModel(source, dtype, device)
        self.model, self.body = self.layers.model, self.layers.body
        self.output = output_layer(self.model).detached()
        self.report = report

    def shortened(self) -> AbstractContextManager[Any]:
        return self.layers.shortened()

    @torch.no_grad()
    def logits(self, rows: Sequence[Row]) -> Iterator[Tensor]:
        device = self.layers.device
        inputs = [
            {"input_ids": torch.tensor([row.ids], device=device), "use_cache": False}
            for row in rows
        ]
        states: list[Tensor | None] = [None] * len(rows)
        last = len(self.layers.layers) - 1
        for number in range(last):
            with self.layers.hold(number):
                for row, given in enumerate(inputs):
                    states[row] = self.layers.compute(number, given, states[row])
        for given, before in zip(inputs, states, strict=True):
            yield self.layers.logits(given, before)[0]

    @contextmanager
    def passes(
        self, data: RowSet, folder: Path, identity: Mapping[str, Any], beside: int
    ) -> Iterator[Callable[[MicroBatch], Tensor]]:
        groups = _groups(self, data)
        largest = max(2 * sum(self._bytes(data, micro) for micro in group) for group in groups)
        check_room(folder.parent, largest + beside)
        passes = _Passes(self, data, groups, folder, identity)
        try:
            yield passes.states
        finally:
            passes.close()

    def _bytes(self, data: RowSet, micro: Micro) -> int:
        """Of a micro-batch's states, padding included."""
        lines, columns = data.shape(micro)
        width, size = self.output.weight.shape[1], self.output.weight.element_size()
        return lines * columns * int(width) * size


class _Passes:
    """The states of one group after the other, as they are asked for."""

    def __init__(
        self,
        teacher: StreamedTeacher,
        data: RowSet,
        groups: Sequence[Sequence[Micro]],
        folder: Path,
        identity: Mapping[str, Any],
    ) -> None:
        self.teacher, self.data, self.groups = teacher, data, groups
        self.folder, self.identity = folder, identity
        self.places: dict[tuple[Family, ...], tuple[int, int]] = {
            tuple(micro): (number, place)
            for number, group in enumerate(groups)
            for place, micro in enumerate(group)
        }
        self.group = -1
        self.spill: Spill | None = None

    def states(self, batch: MicroBatch) -> Tensor:
        """[N, d]: the last hidden states at the batch's positions."""
        number, place = self.places[batch.families]
        if number != self.group:
            self.close()
            self.spill, self.group = self._computed(number), number
        assert self.spill is not None
        states = self.spill.result(place).to(batch.positions.device)
        return states[batch.positions]

    def close(self) -> None:
        """Close the files of the group."""
        if self.spill is not None:
            self.spill.close()
        self.spill = None

    def _computed(self, number: int) -> Spill:
        """All layers of a group, from where a killed run got to."""
        group, streamed = self.groups[number], self.teacher.layers
        shapes = [self.data.shape(micro) for micro in group]
        weight = self.teacher.output.weight
        spill = Spill(
            self.folder,
            {**self.identity, "group": number},
            [lines * columns for lines, columns in shapes],
            int(weight.shape[1]),
            weight.dtype,
        )
        count = len(streamed.layers)
        try:
            for layer in range(spill.layer, count):
                with streamed.hold(layer):
                    for place in range(spill.done, len(group)):
                        batch = self.data.collate(group[place], EVERY, padding=0)
                        inputs = batch.to(streamed.device).inputs()
                        before = None
                        if layer:
                            before = spill.read(place).view(*shapes[place], -1)
                            before = before.to(streamed.device)
                        found = streamed.compute(layer, inputs, before)
                        spill.write(place, found.flatten(0, 1))
                self.teacher.report(number * count + layer + 1, len(self.groups) * count)
        except BaseException:
            spill.close()
            raise
        return spill


def _groups(teacher: StreamedTeacher, data: RowSet) -> list[list[Micro]]:
    """Whole blocks whose states stay within `GROUP_BYTES`, at least one a group."""
    groups: list[list[Micro]] = []
    room = 0
    for block in micros_of(data):
        needed = 2 * sum(teacher._bytes(data, micro) for micro in block)
        if not groups or needed > room:
            groups.append([])
            room = GROUP_BYTES
        groups[-1] += block
        room -= needed
    return groups
