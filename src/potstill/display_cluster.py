"""A recipe on a cluster, as the terminal shows it.

In: a `ClusterPlan`. Out: a table and the assumptions behind it. Knows nothing of how it was
reckoned."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

from potstill.costs.binding import USABLE
from potstill.costs.cluster import Cluster
from potstill.costs.stages import ClusterPlan, StageCost
from potstill.display import duration, size, table

HOST = "host"
BEFORE = ("cut", "reading")


def show(plan: ClusterPlan, assumes: str, console: Console) -> None:
    """Print it. assumes: what the figures are for where files are still to come."""
    rows = [_row(one) for one in plan.stages]
    rows.append(["in all", "", duration(plan.seconds), *[""] * 5])
    header = ["stage", "how", "time", "binds", "memory", "sent", "store", "fits"]
    drawn = table(header, rows)
    drawn.collapse_padding = True
    for place, column in enumerate(drawn.columns):
        column.no_wrap = True
        column.justify = "left" if place in (0, 1, 3, 7) else "right"
    console.print(drawn)
    for one in plan.stages:
        if len(one.parts) > 1:
            parts = [f"{name} {size(count)}" for name, count in one.parts.items()]
            during = [part for part in parts if part.split()[0] not in BEFORE]
            before = [part for part in parts if part.split()[0] in BEFORE]
            said = f"; before it, {', '.join(before)}" if before else ""
            _print(console, f"Memory of {one.name}: {', '.join(during)}{said}.")
    for one in plan.stages:
        if not one.fits:
            what = " ".join(f"--set {part}" if "=" in part else part for part in one.changes)
            way = f"it would with: {what}" if what else "nothing that is known here makes it fit."
            _print(console, f"{one.name} does not fit; {way}")
    _print(console, "")
    for line in assumptions(plan, assumes):
        _print(console, line)


def _row(one: StageCost) -> list[str]:
    here = one.how in (HOST, "endpoint")
    return [
        one.name,
        one.how if one.seconds else "nothing",
        duration(one.seconds) if one.seconds >= 0.1 else "< 0.1 s" if one.seconds else "",
        one.binds,
        "" if here or not one.memory else size(one.memory),
        size(one.sent) if one.sent else "",
        size(one.store) if one.store else "",
        "" if here or not one.memory else "yes" if one.fits else "no",
    ]


def _print(console: Console, text: str) -> None:
    console.print(escape(text), highlight=False, soft_wrap=True)


def assumptions(plan: ClusterPlan, assumes: str) -> list[str]:
    """What the figures rest on, a line each."""
    cluster, one, parts = plan.cluster, plan.cluster.accelerator, plan.shares
    taken = ", ".join(f"{100 * part:.0f}% of {name}" for name, part in parts.items())
    lines = [
        f"{cluster.name}: {_rates(cluster)} ({one.source}; {one.read}).",
        "Memory and what is sent to others are of one rank (a device); binds: what is waited for.",
        f"Taken to be reached: {taken}; {100 * USABLE:.0f}% of memory. Times are of the stages run "
        "anew, and carried over from measurements on two processor cores: docs/scaling.md.",
        "Trainings use every device: distill.processes=auto on one host; for several see "
        "docs/guides/several-gpus.md.",
        "A teacher in PyTorch writes from a whole copy on each device (Ray's workers), a GGUF on "
        "the host's processor; evaluation is one process; what the host's processor does is timed "
        "as on this machine.",
    ]
    return [*lines, f"For {assumes}, as the files are not there yet."] if assumes else lines


def _rates(cluster: Cluster) -> str:
    one = cluster.accelerator
    flops = f"{one.flops / 1e12:,.4g} TFLOP/s in {'bf16' if one.number_bytes == 2 else 'fp32'}"
    rates = [flops, f"{size(one.memory)} at {size(one.bandwidth)}/s"]
    if cluster.ranks > 1:
        rates.append(f"{size(cluster.interconnect)}/s between ranks")
    return ", ".join(rates)
