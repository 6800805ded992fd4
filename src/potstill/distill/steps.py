"""The planned steps as a data set: tensors of a whole optimizer step when it is asked for.

In: rows, a plan of steps, the tokens that count. Out: `Step`s, this process's part of each. Knows
nothing of models or losses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

from torch.utils.data import Dataset

from potstill.distill.batches import Micro, MicroBatch, RowSet
from potstill.distill.objective import ActiveTokens
from potstill.distill.packing import split
from potstill.distill.ranks import Ranks


@dataclass(frozen=True)
class Step:
    """This process's part of one optimizer step, and the active tokens of the whole step."""

    batches: tuple[MicroBatch, ...]
    totals: Mapping[str, float]
    data: RowSet
    """The rows that the batches are of."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """What else is to be logged of it."""
    fillers: tuple[MicroBatch, ...] = ()
    """To be computed for nothing, so that all processes compute as often: of a sharded student."""


class Steps(Dataset[Step]):
    """The planned steps as a data set; tensors are made when a step is asked for."""

    def __init__(
        self,
        data: RowSet,
        plan: Sequence[Sequence[Micro]],
        active: ActiveTokens,
        padding: int,
        ranks: Ranks | None = None,
        *,
        even: bool = False,
    ) -> None:
        """even: all processes are to compute equally often, if need be for nothing."""
        self.even = even
        self.data, self.plan, self.active, self.padding = data, plan, active, padding
        self.ranks = ranks or Ranks.here()

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, number: int) -> Step:
        return self.made(self.data, self.plan[number])

    def made(self, data: RowSet, micros: Sequence[Micro]) -> Step:
        """This process's part of the step that consists of these micro-batches of these rows."""
        rows = (row for micro in micros for family in micro for row in family)
        enough = self._enough(data, micros)
        own = self.ranks.share(enough)
        missing = -(-len(enough) // self.ranks.count) - len(own) if self.even else 0
        fillers = list(enough[:1]) * missing

        def collated(some: Sequence[Micro]) -> tuple[MicroBatch, ...]:
            return tuple(data.collate(micro, self.active, self.padding) for micro in some)

        counts = data.active_counts(rows, self.active)
        return Step(collated(own), counts, data, fillers=collated(fillers))

    def _enough(self, data: RowSet, step: Sequence[Micro]) -> Sequence[Micro]:
        """The step's micro-batches, cut smaller if there are fewer than processes."""
        if len(step) >= self.ranks.count:
            return step
        families = [family for micro in step for family in micro]
        tokens = sum(data.sizes[family] for family in families)
        return split(data, families, -(-tokens // self.ranks.count))

    @cached_property
    def tokens_after(self) -> list[int]:
        """Row tokens trained on after each step."""
        own = (sum(self.data.tokens[one] for micro in step for one in micro) for step in self.plan)
        return list(accumulate(own))
