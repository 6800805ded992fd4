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
from potstill.costs.training import Held, Training, fits, needs_shards, step_of
from potstill.distill.loading import PASS_TOKENS
from potstill.distill.plan import stored_bytes

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

    def seconds(self, passes: float) -> float:
        """Of everything."""
        return self.making.seconds + passes * self.a_pass.seconds


def reading(teacher: Decoder, tokens: float, seen: float, stored: float, cluster: Cluster) -> Phase:
    """The teacher's pass over `tokens` that writes a file of `stored` bytes a token.

    Every rank has its share of the tokens; weights are read once for 4,096 of them, and gathered
    from the other ranks where one cannot hold them all.
    """
    mine = tokens / cluster.ranks
    weights = float(cluster.accelerator.number_bytes * teacher.weights)
    passes = max(1.0, mine / PASS_TOKENS)
    gathered = 0.0 if fits(weights, cluster) else (1 - 1 / cluster.ranks) * weights * passes
    return Phase(
        "reading",
        flops=teacher.forward(mine, seen, mine),
        traffic=weights * passes,
        sent=gathered,
        storage=stored * tokens / cluster.hosts,
    )


def sources(
    training: Training, tokens: float, cluster: Cluster, *, count: int = COUNT
) -> dict[str, Source]:
    """Every source by name, for passes over `tokens` of a training; training.teacher is needed.

    A file that needs more time on the disk than the step on the device waits for the disk. What does
    not fit as whole copies is sharded.
    """
    teacher = training.teacher
    assert teacher is not None
    found = {}
    steps = tokens / training.step_tokens
    for kind, held in KINDS.items():
        stored = stored_bytes(kind, count, teacher.hidden)
        one = replace(training, teacher_held=held, signal_bytes=stored)
        step = step_of(one, cluster, sharded=needs_shards(one, cluster))
        making = bound((), cluster)
        if kind != "live":
            making = bound([reading(teacher, tokens, training.seen, stored, cluster)], cluster)
        a_step = bound([step], cluster)
        a_pass = Spent(
            steps * a_step.seconds,
            a_step.binds,
            {name: steps * seconds for name, seconds in a_step.by_resource.items()},
        )
        found[kind] = Source(kind, stored * tokens, making, a_pass)
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
    """The one that takes the least time, of those whose file has room; of equal ones the first."""
    fitting = [one for one in found if one.file_bytes <= room]
    return min(fitting, key=lambda one: one.seconds(passes))
