"""What work waits for: the roofline of a cluster.

In: phases of work, a cluster. Out: seconds by resource, and which resource binds. Knows no model
and no stage.

A phase takes as long as the slowest of its resources, as if all worked at once (Williams, Waterman
and Patterson 2009, doi:10.1145/1498765.1498785); phases follow one another. So times are the least
that the shares of the peaks below allow, not what a first run will see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from potstill.costs.cluster import Cluster

SHARES = {"compute": 0.4, "bandwidth": 0.7, "interconnect": 0.8, "storage": 0.8}
"""Of the documents' peaks that work reaches. compute: 0.38 to 0.46 of large trainings (Grattafiori
et al. 2024, arXiv:2407.21783; Chowdhery et al. 2022, arXiv:2204.02311). bandwidth, interconnect,
storage: assumptions, of the order that copy and all-reduce tests print."""
MEASURED_SHARES = {"compute": 0.73, "bandwidth": 0.7, "interconnect": 0.8, "storage": 0.8}
"""The same where the peak itself was measured. compute: of full packs on two cores
(docs/experiments.md); the others are assumptions."""
USABLE = 0.92
"""Of a device's memory; the rest is the driver's, the libraries' and lost between blocks."""
RESOURCES = ("compute", "bandwidth", "interconnect", "storage", "requests", "processor")


@dataclass(frozen=True)
class Phase:
    """Work that is done at one time. Amounts are of one rank, but storage, which is of a host."""

    name: str
    flops: float = 0.0
    traffic: float = 0.0
    """Bytes between a device and its memory."""
    sent: float = 0.0
    """Bytes that a rank sends to others."""
    storage: float = 0.0
    """Bytes that a host reads from its disk or writes to it."""
    requests_seconds: float = 0.0
    """What the limits of an endpoint make of it."""
    processor_seconds: float = 0.0
    """Of work that no accelerator takes over, as it was fitted on this machine."""
    spread: bool = True
    """Whether all ranks take part."""


@dataclass(frozen=True)
class Spent:
    """What phases take: seconds by resource, as if each were alone, and in all."""

    seconds: float
    binds: str
    """The resource that was waited for longest."""
    by_resource: dict[str, float] = field(default_factory=dict)


def shares(cluster: Cluster) -> dict[str, float]:
    """Which part of its peaks work is taken to reach there."""
    return MEASURED_SHARES if cluster.accelerator.measured else SHARES


def phase_seconds(phase: Phase, cluster: Cluster) -> dict[str, float]:
    """Seconds of each resource, if it were alone."""
    one, part = cluster.accelerator, shares(cluster)
    return {
        "compute": phase.flops / (one.flops * part["compute"]),
        "bandwidth": phase.traffic / (one.bandwidth * part["bandwidth"]),
        "interconnect": phase.sent / (cluster.interconnect * part["interconnect"]),
        "storage": phase.storage / (one.disk * part["storage"]),
        "requests": phase.requests_seconds,
        "processor": phase.processor_seconds,
    }


def bound(phases: Sequence[Phase], cluster: Cluster) -> Spent:
    """What they take one after the other, and what is waited for longest."""
    total, waited = 0.0, dict.fromkeys(RESOURCES, 0.0)
    alone = dict.fromkeys(RESOURCES, 0.0)
    for phase in phases:
        taken = phase_seconds(phase, cluster)
        slowest = max(taken, key=lambda name: taken[name])
        waited[slowest] += taken[slowest]
        total += taken[slowest]
        for name, seconds in taken.items():
            alone[name] += seconds
    binds = max(waited, key=lambda name: waited[name]) if total else ""
    return Spent(total, binds, alone)
