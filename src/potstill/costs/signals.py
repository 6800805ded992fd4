"""Which way to the teacher's distribution is cheapest, and where that changes.

In: a teacher, a student, tokens, passes over them, a cluster. Out: a `Source` each: bytes of its
file, seconds of making it and of every pass. Knows no recipe and nothing of what a source loses
(docs/concepts/which-method.md). Bytes a token are those that were measured after compression
(docs/experiments.md), as `potstill plan` reckons with them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from potstill.costs.binding import Phase, Spent, bound
from potstill.costs.cluster import Cluster
from potstill.costs.decoder import Decoder
from potstill.costs.training import (
    OVERHEAD,
    Held,
    Training,
    fits,
    memory_of,
    needs_shards,
    step_of,
    whole_bytes,
)
from potstill.distill.loading import PASS_TOKENS
from potstill.distill.plan import stored_bytes
from potstill.models.adapter_config import Precision

KINDS: dict[str, Held] = {
    "live": "live",
    "hidden_bf16": "output",
    "hidden_int8": "output",
    "top_k": "nothing",
    "sampled": "nothing",
}
COUNT = 64
"""Words a token in files of words, unless said otherwise: the recipe's default."""


@dataclass(frozen=True)
class Source:
    """One way, for so many tokens a pass."""

    kind: str
    file_bytes: float
    making: Spent
    """Of the file, once; nothing for the live teacher."""
    a_pass: Spent
    """Of one pass over the tokens, the student's training included."""
    fits: bool = True
    """Whether a rank holds what its training needs."""

    def seconds(self, passes: float) -> float:
        """Of everything."""
        return self.making.seconds + passes * self.a_pass.seconds


def reading(
    teacher: Decoder,
    tokens: float,
    seen: float,
    stored: float,
    cluster: Cluster,
    precision: Precision = "full",
) -> Phase:
    """The teacher's pass over `tokens` that writes a file of `stored` bytes a token.

    Every rank has its share of the tokens and the whole teacher, whose weights are read once for
    4,096 of them. A teacher that does not fit is taken layer by layer (`distill/streaming.py`): the
    states of all tokens go to the disk and come back between any two layers.
    """
    number = cluster.accelerator.number_bytes
    mine = tokens / cluster.ranks
    weights = whole_bytes(teacher, precision, number)
    storage = stored * tokens / cluster.hosts
    if not fits(weights, cluster):
        storage += tokens / cluster.hosts * 2 * number * teacher.hidden * teacher.layers
    return Phase(
        "reading",
        flops=teacher.forward(mine, seen, mine),
        traffic=weights * max(1.0, mine / PASS_TOKENS),
        storage=storage,
    )


def sources(
    training: Training, tokens: float, cluster: Cluster, *, count: int = COUNT
) -> dict[str, Source]:
    """Every source by name, for passes over `tokens` of a training; training.teacher is needed.

    A file that needs more time on the disk than the step on the device waits for the disk. What
    does not fit as whole copies is sharded.
    """
    teacher = training.teacher
    assert teacher is not None
    found = {}
    steps = tokens / training.step_tokens
    for kind, held in KINDS.items():
        stored = stored_bytes(kind, count, teacher.hidden)
        one = replace(training, teacher_held=held, signal_bytes=stored)
        sharded = needs_shards(one, cluster)
        step = step_of(one, cluster, sharded=sharded)
        memory = OVERHEAD + sum(memory_of(one, cluster, sharded=sharded).values())
        making = bound((), cluster)
        if kind != "live":
            once = reading(
                teacher, tokens, training.seen, stored, cluster, training.teacher_precision
            )
            making = bound([once], cluster)
        a_step = bound([step], cluster)
        a_pass = Spent(
            steps * a_step.seconds,
            a_step.binds,
            {name: steps * seconds for name, seconds in a_step.by_resource.items()},
        )
        found[kind] = Source(kind, stored * tokens, making, a_pass, fits(memory, cluster))
    return found


def crossing(one: Source, other: Source) -> float:
    """Passes from which on `other` takes no more time than `one`; infinite if it never does.

    Costs are straight lines of the passes, so there is one such point.
    """
    later = other.making.seconds - one.making.seconds
    gained = one.a_pass.seconds - other.a_pass.seconds
    if later <= 0 and gained >= 0:
        return 0.0
    if gained <= 0:
        return math.inf
    return later / gained


def cheapest(found: Sequence[Source], passes: float, room: float = math.inf) -> Source:
    """The one that takes the least time, of those that fit and whose file has room; of equal ones
    the first. Errors: ValueError if none does."""
    fitting = [one for one in found if one.fits and one.file_bytes <= room]
    return min(fitting, key=lambda one: one.seconds(passes))
