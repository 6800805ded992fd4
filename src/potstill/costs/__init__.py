"""What every stage costs, on which hardware, and what binds: arithmetic alone.

    from potstill import costs

    cluster = costs.parse_cluster("8xH100")
    teacher = costs.published()["Llama-3-70B"]

In: sizes of models, numbers of tokens, a cluster by name. Out: operations, bytes, seconds, and the
resource that they wait for. Pure functions over two tables of data (`machines.yaml`,
`models.yaml`). Measures nothing, starts nothing; imports no torch. docs/scaling.md explains it and
holds it against measurements.
"""

from __future__ import annotations

from potstill.costs.binding import Phase, Spent, bound
from potstill.costs.cluster import Accelerator, Cluster, accelerators, parse_cluster
from potstill.costs.decoder import Decoder, of_size, published
from potstill.costs.signals import Source, cheapest, crossing, sources
from potstill.costs.training import Training, memory_of, step_of

__all__ = [
    "Accelerator",
    "Cluster",
    "Decoder",
    "Phase",
    "Source",
    "Spent",
    "Training",
    "accelerators",
    "bound",
    "cheapest",
    "crossing",
    "memory_of",
    "of_size",
    "parse_cluster",
    "published",
    "sources",
    "step_of",
]
