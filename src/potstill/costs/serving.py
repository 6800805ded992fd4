"""What asking a model for text takes, and which device holds it.

In: a decoder, tokens read and written, a cluster. Out: phases, bytes. Knows no recipe.
"""

from __future__ import annotations

from potstill.costs.binding import USABLE, Phase
from potstill.costs.cluster import HERE, Cluster, accelerators
from potstill.costs.decoder import Decoder
from potstill.costs.training import OVERHEAD


def writing(
    model: Decoder,
    prompt: float,
    reply: float,
    batch: int,
    context: float,
    cluster: Cluster,
) -> list[Phase]:
    """Prompts of so many tokens in all are read, then replies written, copies on all devices.

    A written token waits for all weights, shared by the batch, and for its own keys and values
    (Pope et al. 2022, arXiv:2211.05102): bytes, not operations, as long as batches are small.
    """
    number, seen = cluster.accelerator.number_bytes, context / 2
    read, written = prompt / cluster.ranks, reply / cluster.ranks
    weights = number * model.weights
    return [
        Phase(
            "reading",
            flops=model.forward(read, seen, 0.0),
            traffic=weights * max(1.0, read / (batch * context)),
        ),
        Phase(
            "writing",
            flops=model.forward(written, seen, written),
            traffic=written * (weights / batch + model.cache_bytes(number) * seen),
        ),
    ]


def serving_bytes(model: Decoder, batch: int, context: float, cluster: Cluster) -> float:
    """Of a device that holds a whole copy and a full batch."""
    number = cluster.accelerator.number_bytes
    return OVERHEAD + number * model.weights + batch * context * model.cache_bytes(number)


def larger_device(memory: float, other: str = "") -> tuple[str, ...]:
    """Another way if there is one, or the smallest device that holds so much; empty if none
    does."""
    known = [one for one in accelerators().values() if one.name != HERE]
    holding = [one for one in known if memory <= USABLE * one.memory]
    found = [f"--cluster {min(holding, key=lambda one: one.memory).name}"] if holding else []
    ways = [one for one in (other, *found) if one]
    return (" or ".join(ways),) if ways else ()
