"""Where the teacher's distribution comes from: its forward pass, or a cache on disk.

In: micro-batches. Out: for their active tokens what is known of the teacher's distribution. Knows
nothing of students or losses.

    source     kind          what `tokens` gives
    live       -             HiddenStates: exact, through the teacher's own output layer
    cache      hidden_bf16   HiddenStates, rounded to bf16
    cache      hidden_int8   HiddenStates, rounded to int8 by groups of features
    cache      top_k         TopK: the likeliest words and the mass of all others
    cache      sampled       Samples: an unbiased estimate

A record of a cache is a family (`families.py`): the signals of every token of its sequence, so a
beginning that rows share is stored once, and a batch may hold any families in any order and
layout. A cache is written as it is computed and goes on after a kill (`cache.py`); the teacher's
body is needed only to write it. It belongs to one teacher, one text as token ids and one format,
and refuses every other.
"""

from __future__ import annotations

import hashlib
import shutil
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from potstill.distill.batches import MicroBatch, Row, RowSet
from potstill.distill.cache import ENTRY, Shards, ShardWriter
from potstill.distill.codecs import CacheFormat, Codec
from potstill.distill.families import Family
from potstill.distill.ranks import Ranks
from potstill.distill.recording import Recorder
from potstill.distill.sparse import Kept, Samples, TopK, joined
from potstill.errors import TrainingError
from potstill.models.body import body_of
from potstill.models.cast import cast
from potstill.models.output import OutputLayer, output_layer

if TYPE_CHECKING:
    from potstill.distill.mixture import Mixture

__all__ = [
    "LARGEST_CACHE",
    "CacheFormat",
    "CachedTeacher",
    "HiddenStates",
    "LiveTeacher",
    "OneTeacher",
    "Ranked",
    "Samples",
    "TeacherSignal",
    "TeacherTokens",
    "TopK",
    "cache_bytes",
    "open_cache",
    "read_cache",
]

LARGEST_CACHE = 8 << 30
STATES = "states"
"""Where in a cache's folder states of layers are kept while it is computed."""


@dataclass(frozen=True)
class HiddenStates:
    """The exact distribution: logits = output.logits(states)."""

    states: Tensor
    """[N, d_t], of any floating type."""
    output: OutputLayer
    """The teacher's, without gradients."""


@dataclass(frozen=True)
class Ranked:
    """A distribution over other words than the student's, of which the order alone is compared."""

    states: Tensor
    """[N, d_t]."""
    output: OutputLayer
    """The teacher's, cut to its words, without gradients."""


TeacherTokens = HiddenStates | TopK | Samples | Ranked
"""What is known of the teacher's distribution of N tokens."""


class TeacherSignal(Protocol):
    """A source of the teacher's distribution, or of several teachers'."""

    def tokens(self, rows: Sequence[Row], batch: MicroBatch) -> TeacherTokens | Mixture:
        """The teacher's tokens at `batch.positions`, on the batch's device."""
        ...


class LiveTeacher:
    """The teacher itself, in evaluation mode and without gradients."""

    streamed = False
    """Whether its layers are read when they are computed (`streaming.py`)."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        self.model = cast(model, dtype).eval().requires_grad_(False)
        self.body = body_of(model)
        self.output = output_layer(model).detached()

    @torch.no_grad()
    def tokens(self, rows: Sequence[Row], batch: MicroBatch) -> HiddenStates:
        """One forward pass of the teacher's body; its output layer is not multiplied here.

        A packed batch needs a model that was prepared by `attention.use`.
        """
        states = self.body(**batch.inputs()).last_hidden_state
        return HiddenStates(states.flatten(0, 1)[batch.positions], self.output)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.output.weight.device

    def shortened(self) -> AbstractContextManager[Any]:
        """The model for trials of its layouts: where layers are dear, no more than are needed."""
        return nullcontext(self.model)

    @torch.no_grad()
    def logits(self, rows: Sequence[Row]) -> Iterator[Tensor]:
        """[L, V] of each row by itself, one after the other: the model's own."""
        for row in rows:
            ids = torch.tensor([row.ids], device=self.output.weight.device)
            yield self.model(input_ids=ids, use_cache=False).logits[0]

    @contextmanager
    def passes(
        self, data: RowSet, folder: Path, identity: Mapping[str, Any], beside: int
    ) -> Iterator[Callable[[MicroBatch], Tensor]]:
        """What computes the last hidden states of a cache's micro-batches, [N, d] each.

        folder: where states may be kept meanwhile. identity: of the cache, which has at most
        `beside` bytes itself.
        """
        yield lambda batch: self.tokens(data.rows, batch).states


class CachedTeacher:
    """A finished cache, read where it lies on disk; the teacher's body need not be in memory."""

    def __init__(
        self, shards: Shards, output: OutputLayer, data: RowSet, format: CacheFormat
    ) -> None:
        """`shards` are of exactly these rows; `open_cache` and `read_cache` see to that."""
        self.shards, self.data, self.format = shards, data, format
        self.output = output if format.hidden else None
        """The teacher's output layer, held only where hidden states need it."""
        self.codec = Codec(format, output.weight.shape[1])
        self.numbers = {family: number for number, family in enumerate(data.sizes)}

    def tokens(self, rows: Sequence[Row], batch: MicroBatch) -> TeacherTokens:
        """Position p of a family that begins at s is token p - s of its record.

        Errors: StoreError if a record is damaged; TrainingError if these are not the cache's rows.
        """
        positions, starts = batch.positions.cpu(), torch.tensor(batch.starts)
        owners = torch.searchsorted(starts, positions, right=True) - 1
        chosen: list[Tensor] = []
        parts: list[Kept] = []
        for place, family in enumerate(batch.families):
            own = (owners == place).nonzero()[:, 0]
            if len(own) or not (place or len(positions)):
                chosen.append(own)
                parts.append(self._read(rows, family, positions[own] - starts[place]))
        kept: Kept = joined(parts)[torch.cat(chosen).argsort()].to(batch.input_ids.device)
        if not isinstance(kept, Tensor):
            return kept
        assert self.output is not None
        return HiddenStates(kept, self.output)

    def _read(self, rows: Sequence[Row], family: Family, places: Tensor) -> Kept:
        number, known = self.numbers.get(family), self.data.rows
        if number is None or any(rows[one].ids != known[one].ids for one in family):
            raise TrainingError(
                f"Rows {', '.join(rows[one].id for one in family)} are not those of the "
                f"teacher's signals in {self.shards.folder}.",
                "Train on the rows for which the signals were computed.",
            )
        return self.codec.decode(self.shards.read(number), self.data.sizes[family], places)


OneTeacher = LiveTeacher | CachedTeacher
"""A source of one teacher's distribution."""


def open_cache(
    folder: Path,
    teacher: LiveTeacher,
    digest: str,
    data: RowSet,
    format: CacheFormat,
    progress: Callable[[int, int], None],
    *,
    vocabulary: int | None = None,
) -> CachedTeacher:
    """The cache of these rows in `folder`: opened, completed or built, whatever it needs; by all
    processes together, if there are several.

    digest: the teacher's. vocabulary: its real words, without padded rows of its output layer;
    None: there are none. progress(done, total) counts tokens. Errors: TrainingError if the
    teacher's states are not finite, which names the row; StoreError of `read_cache`.
    """
    ranks = Ranks.here()
    if not ranks.first(lambda: (folder / "index.json").exists()):
        words = vocabulary or teacher.output.words
        identity = _identity(teacher.output, digest, data, format, words)

        def write(together: bool) -> None:
            most = cache_bytes(data, int(teacher.output.weight.shape[1]), format, words)
            with teacher.passes(data, folder / STATES, identity, most) as states:
                recorder = Recorder(states, teacher.output, data, format, words)
                if together:
                    recorder.write_together(folder, identity, progress, ranks)
                else:
                    sizes = [len(block) for block in recorder.blocks]
                    recorder.write(ShardWriter(folder, identity, sizes), progress)

        if ranks.count > 1 and not teacher.streamed:
            write(True)
        else:  # of a streamed teacher each layer is read once for many rows, by one process
            ranks.first(lambda: write(False))
    if ranks.leads:
        shutil.rmtree(folder / STATES, ignore_errors=True)
    return read_cache(folder, teacher.output, digest, data, format, vocabulary=vocabulary)


def read_cache(
    folder: Path,
    output: OutputLayer,
    digest: str,
    data: RowSet,
    format: CacheFormat,
    *,
    vocabulary: int | None = None,
) -> CachedTeacher:
    """Open a finished cache, without the teacher's body. output: the teacher's.

    Errors: StoreError if it is unfinished, damaged, or of another teacher, text or format.
    """
    identity = _identity(output, digest, data, format, vocabulary or output.words)
    return CachedTeacher(Shards(folder, identity), output, data, format)


def cache_bytes(data: RowSet, width: int, format: CacheFormat, vocabulary: int = 1 << 16) -> int:
    """The most bytes that a cache of these rows has; compression saves what it can.

    width: features of the teacher's hidden states.
    """
    tokens = sum(data.sizes.values())
    return tokens * format.token_bytes(width, vocabulary) + len(data.families) * ENTRY.itemsize


def _identity(
    output: OutputLayer, digest: str, data: RowSet, format: CacheFormat, vocabulary: int
) -> dict[str, Any]:
    """What a cache belongs to; the names are words of the message that refuses another."""
    format.check(vocabulary)
    hashed = hashlib.sha256()
    for numbers in (*(row.ids for row in data.rows), *data.families):
        hashed.update(array("q", [len(numbers), *numbers]).tobytes())
    return {
        "teacher": {"digest": digest, "output layer": list(output.weight.shape)},
        "tokenizer, template or text": {
            "rows": len(data.rows),
            "families": len(data.families),
            "packed": data.packed,
            "digest": hashed.hexdigest(),
        },
        "format": format.settings | ({} if format.hidden else {"vocabulary": vocabulary}),
    }
