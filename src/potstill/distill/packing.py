"""Which rows are trained together, and in which order: epochs, steps, micro-batches.

In: a `RowSet` and budgets of tokens. Out: the whole training as a list of steps of micro-batches,
the same for the same input. Knows nothing of tensors or models.
"""

from __future__ import annotations

import bisect
import random
from collections.abc import Mapping, Sequence

from potstill.distill.batches import Micro, RowSet
from potstill.distill.families import Family
from potstill.errors import TrainingError

WINDOW_STEPS = 16
"""Optimizer steps among which rows are sorted by length: little padding, and still a shuffle."""


def plan_steps(
    data: RowSet,
    *,
    step_tokens: int,
    micro_tokens: int,
    epochs: float,
    max_tokens: int | None,
    seed: int,
) -> list[list[Micro]]:
    """The whole training as steps of micro-batches of families; the same for the same input.

    Every epoch shuffles the families and cuts them into steps of about `step_tokens` tokens. For
    buckets they are sorted by length within windows of `WINDOW_STEPS` steps before, and a window's
    steps are shuffled. A step's tokens are those of its rows, each counted in full though a
    beginning that rows share is computed once. A micro-batch computes at most `micro_tokens`.
    """
    if not data.rows:
        raise TrainingError(
            "There are no training rows.", "Add documents, or let curation keep more rows."
        )
    budget = int(epochs * sum(data.tokens.values()))
    if max_tokens is not None:
        budget = min(budget, max_tokens)
    steps: list[list[Micro]] = []
    spent, epoch = 0, 0
    while spent < budget:
        rng = random.Random(f"{seed}/{epoch}")
        for step in _epoch_steps(data, step_tokens, rng):
            if spent >= budget:
                break
            spent += sum(data.tokens[family] for family in step)
            steps.append(split(data, step, micro_tokens))
        epoch += 1
    return steps


def split(data: RowSet, families: Sequence[Family], micro_tokens: int) -> list[Micro]:
    """Families as micro-batches that compute at most `micro_tokens`, padding included."""
    how = best_fit if data.packed else fill_buckets
    return how(families, data.sizes, micro_tokens)


def fill_buckets(
    families: Sequence[Family], sizes: Mapping[Family, int], micro_tokens: int
) -> list[Micro]:
    """Families in ascending length, cut so that families x longest stays within `micro_tokens`."""
    micros: list[Micro] = []
    for family in sorted(families, key=lambda family: (sizes[family], family)):
        if micros and (len(micros[-1]) + 1) * sizes[family] <= micro_tokens:
            micros[-1].append(family)
        else:
            micros.append([family])
    return micros


def best_fit(
    families: Sequence[Family], sizes: Mapping[Family, int], micro_tokens: int
) -> list[Micro]:
    """The longest first, each into the fullest micro-batch that still takes it.

    Best-fit decreasing: needs at most 11/9 of the fewest possible, and four (Johnson, Demers,
    Ullman, Garey, Graham 1974). A family longer than `micro_tokens` gets one of its own.
    """
    micros: list[Micro] = []
    room: list[tuple[int, int]] = []  # (tokens that are left, number of the micro-batch), sorted
    for family in sorted(families, key=lambda family: (-sizes[family], family)):
        place = bisect.bisect_left(room, (sizes[family], -1))
        if place == len(room):
            left, number = micro_tokens, len(micros)
            micros.append([])
        else:
            left, number = room.pop(place)
        micros[number].append(family)
        bisect.insort(room, (left - sizes[family], number))
    return micros


def _epoch_steps(data: RowSet, step_tokens: int, rng: random.Random) -> list[list[Family]]:
    order = list(data.tokens)
    rng.shuffle(order)
    steps: list[list[Family]] = []
    window: list[Family] = []
    held = 0
    for place, family in enumerate(order):
        window.append(family)
        held += data.tokens[family]
        if held >= WINDOW_STEPS * step_tokens or place == len(order) - 1:
            if not data.packed:  # which has no padding to save
                window.sort(key=lambda family: (data.sizes[family], family))
            steps += _window_steps(window, data.tokens, step_tokens, rng)
            window, held = [], 0
    return steps


def _window_steps(
    window: Sequence[Family],
    tokens: Mapping[Family, int],
    step_tokens: int,
    rng: random.Random,
) -> list[list[Family]]:
    """Cut a window into steps of nearly equal size, in a shuffled order."""
    total = sum(tokens[family] for family in window)
    count = max(1, round(total / step_tokens))
    steps: list[list[Family]] = [[] for _ in range(count)]
    seen = 0
    for family in window:
        middle = seen + tokens[family] / 2
        steps[min(count - 1, int(middle * count / total))].append(family)
        seen += tokens[family]
    steps = [step for step in steps if step]
    rng.shuffle(steps)
    return steps
