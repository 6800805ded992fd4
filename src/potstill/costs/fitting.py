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
    one: Training, cluster: Cluster, overhead: float, section: str, *, sharded: bool = False
) -> tuple[str, ...]:
    """What to set so that it fits: one setting if one is enough, else as few as are; then more or
    larger devices with whatever still helps; empty if nothing that is known does.

    sharded: whether the recipe shards already; else that is one of the settings.
    """
    found = _nearest(one, cluster, overhead, section)
    if found is None:
        return ()
    said, fitting, there = found
    if fitting.adapter != one.adapter and (sharded or one.zero):  # adapters are not in parts
        said = (f"{section}.sharding=none", *said)
    elif not sharded and not _fits(fitting, there, overhead, sharded=False):
        said = (f"{section}.sharding=fsdp", *said)
    return said


def _nearest(
    one: Training, cluster: Cluster, overhead: float, section: str
) -> tuple[tuple[str, ...], Training, Cluster] | None:
    """What to set, and the training and cluster that come of it."""
    if _holds(one, cluster, overhead):  # in shards
        return (), one, cluster
    tries = list(_settings(one, section))
    for changed, words in tries:
        if _holds(changed, cluster, overhead):
            return (words,), changed, cluster
    wider = _more_devices(one, cluster, overhead)
    if wider is not None:
        return (f"--cluster {wider.name}",), one, wider
    together, said = one, dict[str, str]()
    for changed, words in tries:
        together = _joined(together, changed, one)
        said[words.partition("=")[0]] = words  # the smallest of the micro-batches alone
        if _holds(together, cluster, overhead):
            return tuple(said.values()), together, cluster
    wider = _more_devices(together, cluster, overhead)
    if wider is None:
        return None
    return (*said.values(), f"--cluster {wider.name}"), together, wider


def _holds(one: Training, cluster: Cluster, overhead: float) -> bool:
    """Whether it fits as whole copies or, where that is possible, in shards."""
    ways = (False, True) if cluster.ranks > 1 and one.adapter == "none" else (False,)
    return any(_fits(one, cluster, overhead, sharded=way) for way in ways)


def _fits(one: Training, cluster: Cluster, overhead: float, *, sharded: bool) -> bool:
    return fits(overhead + sum(memory_of(one, cluster, sharded=sharded).values()), cluster)


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
        whole = replace(one, zero=0, offloaded=False)
        yield replace(whole, adapter="lora"), f"{field}=lora"
        if section != "correct":
            yield replace(whole, adapter="qlora"), f"{field}=qlora"


def _joined(so_far: Training, changed: Training, one: Training) -> Training:
    """The settings of `changed` that differ from the first, upon those so far."""
    names = [name for name in vars(one) if getattr(changed, name) != getattr(one, name)]
    return replace(so_far, **{name: getattr(changed, name) for name in names})


def _more_devices(one: Training, cluster: Cluster, overhead: float) -> Cluster | None:
    """The fewest of the same devices, else those of the smallest kind that hold it; None if none
    do."""
    if cluster.accelerator.name == HERE:
        other = [Cluster(device) for device in accelerators().values() if device.name != HERE]
    else:
        wider = cluster
        while wider.ranks < MOST_RANKS:
            wider = wider.times(2)
            if _holds(one, wider, overhead):
                return wider
        known = [device for device in accelerators().values() if device.name != HERE]
        fitting = [device for device in known if cluster.devices <= device.in_a_host]
        other = [replace(cluster, accelerator=device) for device in fitting]
    other.sort(key=lambda there: there.accelerator.memory)
    return next((there for there in other if _holds(one, there, overhead)), None)
