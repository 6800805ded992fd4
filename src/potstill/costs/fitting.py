"""The nearest change with which a training fits.

In: a training that does not fit, a cluster. Out: what to set, as the recipe names it. Tries what
changes least of the result first; each try is the same arithmetic as the plan's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from potstill.costs.cluster import HERE, Cluster, accelerators
from potstill.costs.training import Training, fits, memory_of

SMALLEST_MICRO = 1024
MOST_RANKS = 1024


def nearest_change(
    one: Training, cluster: Cluster, overhead: float, section: str
) -> tuple[str, ...]:
    """What to set so that it fits: one setting if one is enough, else as few as are; then more or
    larger devices with whatever still helps; empty if nothing that is known does."""
    tries = list(_settings(one, section))
    for changed, words in tries:
        if _holds(changed, cluster, overhead):
            return (words,)
    wider = _more_devices(one, cluster, overhead)
    if wider:
        return (wider,)
    together, said = one, {}
    for changed, words in tries:
        together = _joined(together, changed, one)
        said[words.partition("=")[0]] = words  # the smallest of the micro-batches alone
        if _holds(together, cluster, overhead):
            return tuple(said.values())
    wider = _more_devices(together, cluster, overhead)
    return (*said.values(), wider) if wider else ()


def _holds(one: Training, cluster: Cluster, overhead: float) -> bool:
    ways = (False, True) if cluster.ranks > 1 and one.adapter == "none" else (False,)
    return any(
        fits(overhead + sum(memory_of(one, cluster, sharded=way).values()), cluster) for way in ways
    )


def _settings(one: Training, section: str) -> Iterator[tuple[Training, str]]:
    """What can be set, the harmless first: the objective stays the same up to signals in a file."""
    if one.micro_tokens > SMALLEST_MICRO:
        micro = int(one.micro_tokens)
        while micro > SMALLEST_MICRO:
            micro = max(SMALLEST_MICRO, micro // 2)
            yield replace(one, micro_tokens=micro), f"{section}.micro_tokens={micro}"
    if not one.checkpointed:
        yield replace(one, checkpointed=True), f"{section}.gradient_checkpointing=true"
    if one.teacher_held == "live":
        yield replace(one, teacher_held="output"), f"{section}.signal=hidden_bf16"
        for precision in ("8bit", "4bit"):
            words = f"{section}.teacher_precision={precision}"
            yield replace(one, teacher_precision=precision), words
    if one.adapter == "none":
        field = "correct.method" if section == "correct" else f"{section}.adapter"
        yield replace(one, adapter="lora"), f"{field}=lora"
        if section != "correct":
            yield replace(one, adapter="qlora"), f"{field}=qlora"


def _joined(so_far: Training, changed: Training, one: Training) -> Training:
    """The settings of `changed` that differ from the first, upon those so far."""
    names = [name for name in vars(one) if getattr(changed, name) != getattr(one, name)]
    return replace(so_far, **{name: getattr(changed, name) for name in names})


def _more_devices(one: Training, cluster: Cluster, overhead: float) -> str:
    """The fewest of the same devices, else one of the smallest that hold it; empty if none does."""
    if cluster.accelerator.name == HERE:
        single = [Cluster(device) for device in accelerators().values() if device.name != HERE]
    else:
        wider = cluster
        while wider.ranks < MOST_RANKS:
            wider = wider.times(2)
            if _holds(one, wider, overhead):
                return f"--cluster {wider.name}"
        single = [replace(cluster, accelerator=device) for device in accelerators().values()]
    single.sort(key=lambda other: other.accelerator.memory)
    holding = [other for other in single if _holds(one, other, overhead)]
    return f"--cluster {holding[0].name}" if holding else ""
