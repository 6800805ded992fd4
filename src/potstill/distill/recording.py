"""From the teacher's forward passes to the records of a cache.

In: what computes hidden states, rows in families, a format. Out: one record a family, written block
after block. Knows nothing of how records lie on disk or are read.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill.distill.batches import Micro, MicroBatch, RowSet
from potstill.distill.cache import Shards, ShardWriter
from potstill.distill.codecs import CacheFormat, Codec
from potstill.distill.families import Family
from potstill.distill.objective import ActiveTokens
from potstill.distill.packing import split
from potstill.distill.ranks import Ranks
from potstill.distill.sparse import (
    LOGITS_BYTES,
    Kept,
    Samples,
    TopK,
    exact_logits,
    joined,
    sample,
    top_k,
    uniforms,
)
from potstill.errors import TrainingError
from potstill.models.output import OutputLayer

CACHE_BATCH_TOKENS = 4096
BLOCK_BATCHES = 4
PARTS = "parts"
"""Of a cache's folder, while several processes write it."""
EVERY = ActiveTokens(kd="all", ce=None)


class Recorder:
    """Computes the records of some rows.

    states: of a micro-batch, the teacher's last hidden states at its positions, [N, d].
    vocabulary: real words of the output layer.
    """

    def __init__(
        self,
        states: Callable[[MicroBatch], Tensor],
        output: OutputLayer,
        data: RowSet,
        format: CacheFormat,
        vocabulary: int,
    ) -> None:
        self.states, self.output, self.data = states, output, data
        self.format, self.vocabulary = format, vocabulary
        self.codec = Codec(format, output.weight.shape[1])
        self.blocks = blocks_of(data.sizes)
        sizes = data.sizes
        self.firsts = dict(zip(sizes, accumulate(sizes.values(), initial=0), strict=False))
        """Place of each family's first token in the cache: its draws depend on that alone."""

    @torch.no_grad()
    def write(self, writer: ShardWriter, progress: Callable[[int, int], None]) -> None:
        """Compute and write the blocks that are not there yet. progress(done, total): tokens.

        The blocks are the same on every run, so that a run that was killed computes the same
        batches as an undisturbed one, and sums round alike.
        """
        self._write(writer, progress, range(len(self.blocks)))
        writer.finish()

    @torch.no_grad()
    def write_together(
        self,
        folder: Path,
        identity: Mapping[str, Any],
        progress: Callable[[int, int], None],
        ranks: Ranks,
    ) -> None:
        """The same file, written by several processes: each computes every n-th block into a part
        of its own, and the first puts the blocks in their order. A part goes on after a kill."""
        numbers = range(len(self.blocks))

        def part(rank: int) -> Path:
            return folder / PARTS / f"{rank}-of-{ranks.count}"

        def of(rank: int) -> tuple[Path, dict[str, Any], list[int]]:
            own = numbers[rank :: ranks.count]
            identified = {**identity, "part": [rank, ranks.count]}
            return part(rank), identified, [len(self.blocks[number]) for number in own]

        if numbers[ranks.number :: ranks.count]:
            writer = ShardWriter(*of(ranks.number))
            if not writer.finished or not (part(ranks.number) / "index.json").exists():
                self._write(writer, progress, numbers[ranks.number :: ranks.count])
                writer.finish()
        ranks.wait()
        if ranks.leads:
            whole = ShardWriter(folder, identity, [len(block) for block in self.blocks])
            ready = [Shards(*of(rank)[:2]) for rank in range(min(ranks.count, len(numbers)))]
            places = [0] * ranks.count
            for number in numbers:
                rank, count = number % ranks.count, len(self.blocks[number])
                if number >= whole.done:
                    first = places[rank]
                    whole.append([ready[rank].read(one) for one in range(first, first + count)])
                places[rank] += count
            whole.finish()
            del ready
            shutil.rmtree(folder / PARTS)
        ranks.wait()

    def _write(
        self, writer: ShardWriter, progress: Callable[[int, int], None], numbers: Sequence[int]
    ) -> None:
        """Compute and append the blocks of these numbers; those that are there are left."""
        sizes, done = self.data.sizes, 0
        total = sum(sizes[family] for number in numbers for family in self.blocks[number])
        micros = micros_of(self.data)
        for place, number in enumerate(numbers):
            block = self.blocks[number]
            done += sum(sizes[family] for family in block)
            if place >= writer.done:
                records: dict[Family, bytes] = {}
                for micro in micros[number]:
                    records |= self.records(micro)
                writer.append([records[family] for family in block])
                progress(done, total)

    def records(self, micro: Micro) -> dict[Family, bytes]:
        """One forward pass. Tokens that predict nothing, as a row's last one, are left at 0."""
        batch = self.data.collate(micro, EVERY, padding=0).to(self.output.weight.device)
        found, count, at = self.states(batch), batch.input_ids.numel(), batch.positions
        states = found.new_zeros(count, found.shape[1]).index_put((at,), found)
        self._check_finite(states, batch)
        parts = {
            family: slice(start, start + self.data.sizes[family])
            for family, start in zip(batch.families, batch.starts, strict=True)
        }
        kept: Kept = states.cpu()
        if not self.format.hidden:
            places = torch.zeros(count, dtype=torch.int64)
            for family, part in parts.items():
                places[part] = self.firsts[family] + torch.arange(part.stop - part.start)
            kept = self._sparse(states, torch.unique(at), places)
        return {family: self.codec.encode(kept[part]) for family, part in parts.items()}

    def _sparse(self, states: Tensor, at: Tensor, places: Tensor) -> TopK | Samples:
        """What is kept of the tokens at `at`, by parts, so that few logits exist at once."""
        parts: list[TopK | Samples] = []
        for rows in torch.split(at, max(1, LOGITS_BYTES // (4 * self.vocabulary))):
            logits = exact_logits(self.output, states[rows], self.vocabulary)
            parts.append(self._of_logits(logits, places[rows.cpu()]).to("cpu"))
        whole: TopK | Samples = joined(parts)
        return whole.spread(at.cpu(), len(states))

    def _of_logits(self, logits: Tensor, places: Tensor) -> TopK | Samples:
        count, temperature = self.format.count, self.format.temperature
        if self.format.kind == "top_k":
            return top_k(logits, count, temperature)
        drawn = uniforms(self.format.seed, places, count)
        return sample(logits, temperature, drawn.to(logits.device))

    def _check_finite(self, states: Tensor, batch: MicroBatch) -> None:
        bad = ~torch.isfinite(states).all(-1).cpu()
        for row, span in zip(batch.rows, batch.spans, strict=True):
            if bad[span.flat()].any():
                raise TrainingError(
                    f"The teacher's hidden states of row {self.data.rows[row].id} are not finite.",
                    "Remove the row, or use precision: fp32.",
                )


def micros_of(data: RowSet) -> list[list[Micro]]:
    """The micro-batches of every block: always the same for the same rows."""
    return [split(data, block, CACHE_BATCH_TOKENS) for block in blocks_of(data.sizes)]


def blocks_of(sizes: Mapping[Family, int]) -> list[list[Family]]:
    """The families in their order, about `BLOCK_BATCHES` batches in a block."""
    blocks: list[list[Family]] = []
    tokens = most = BLOCK_BATCHES * CACHE_BATCH_TOKENS
    for family, size in sizes.items():
        if tokens >= most:
            blocks.append([])
            tokens = 0
        blocks[-1].append(family)
        tokens += size
    return blocks
