"""Shows a run's events in the terminal: bars where there is a terminal, lines where there is none.

In: events, one dictionary each. Out: text on standard error. Knows nothing of stages' insides.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from potstill.core.runner import PlannedStep
from potstill.core.stage import Advice
from potstill.needs import ModelNeed

QUIET_SECONDS = 10.0  # between two progress lines where there is no terminal
MADE = ("chunks", "rows", "train_rows", "validation_rows", "test_rows")
FIGURES = (
    "loss",
    "kl",
    "validation_loss",
    "validation_kl",
    "validation_spans",
    "tokens_per_second",
    "rows_per_second",
)
NO_SIGN = ("correct", "validation_kl")
"""A correction moves away from the model that came: its distance to that is no sign of progress."""
PACES: tuple[tuple[str, str], ...] = (
    ("rows_per_second", "{} usable rows/s"),
    ("tokens_per_second", "{} tokens/s"),
    ("cost", "cost {}"),
)


def number(value: float) -> str:
    """A figure as short as it stays honest: 1234 -> 1,234; 0.01234 -> 0.0123."""
    if value == int(value) and abs(value) >= 100:
        return f"{int(value):,}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def size(count: float) -> str:
    """A number of bytes for people: 98379826 -> 98 MB."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    for unit in ("GB", "TB"):
        if count < 1000:
            return f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} PB"


def duration(seconds: float) -> str:
    """Seconds for people: 75 -> 1 min 15 s."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    if seconds >= 48 * 3600:
        return f"{seconds / 86400:,.0f} days"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


class Display:
    """Follows one run. Call it with each event."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.live = console.is_terminal
        self.progress = Progress(
            TextColumn("  {task.fields[label]:<28}"),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[figures]}"),
            console=console,
            transient=True,
        )
        self._tasks: dict[str, Any] = {}
        self._figures: dict[str, str] = {}
        self._last_line = 0.0
        self._rejected: Counter[str] = Counter()

    def __call__(self, event: dict[str, Any]) -> None:
        kind = event["kind"]
        handler = getattr(self, f"_on_{kind}", None)
        if handler is not None:
            handler(event)

    def _line(self, stage: str, text: str) -> None:
        self.console.print(f"[bold]{stage:<9}[/] {text}", highlight=False, soft_wrap=True)

    def _on_started(self, event: dict[str, Any]) -> None:
        self._clear()
        resumed = " (goes on from where it was)" if event.get("resumed") else ""
        self._line(event["stage"], f"started{resumed}")

    def _on_skipped(self, event: dict[str, Any]) -> None:
        self._line(
            event["stage"], f"[dim]{escape(event.get('reason', 'nothing changed'))}, reused[/]"
        )

    def _on_finished(self, event: dict[str, Any]) -> None:
        rejected = ""
        if self._rejected:
            reasons = ", ".join(f"{name} {count}" for name, count in self._rejected.most_common(3))
            rejected = f"; {number(self._rejected.total())} rejected ({reasons})"
            if event.get("folder"):
                rejected += f", listed in {_from_here(event['folder'])}/data/rejected.jsonl"
        self._clear()
        took = duration(event["seconds"])
        made = [
            f"{number(count)} {name.replace('_', ' ')}"
            for name, count in event.get("counts", {}).items()
            if name in MADE and count
        ]
        self._line(
            event["stage"],
            f"[green]done[/] in {took}, peak {size(event['peak_memory_bytes'])}"
            + (f"; {', '.join(made)}" if made else "")
            + rejected,
        )

    def _on_failed(self, event: dict[str, Any]) -> None:
        self._clear()

    def _on_warning(self, event: dict[str, Any]) -> None:
        self._line(event["stage"], f"[yellow]note:[/] {escape(event['message'])}")

    def _on_rejected(self, event: dict[str, Any]) -> None:
        self._rejected[event["reason"]] += event.get("count", 1)

    def _on_metric(self, event: dict[str, Any]) -> None:
        name = event["name"]
        shown = name in FIGURES and (event["stage"], name) != NO_SIGN
        if shown and isinstance(event["value"], int | float):
            plain = name.replace("_per_second", "/s").replace("_", " ")
            self._figures[plain] = number(event["value"])

    def _on_progress(self, event: dict[str, Any]) -> None:
        label = event.get("step") or event["stage"]
        count = f"{number(int(event['done']))}/{number(event['total'])} {event['unit']}"
        if "page" in event:
            count += f", page {number(event['page'])}/{number(event['pages'])}"
        shown = [f"{name} {value}" for name, value in self._figures.items()]
        shown += [words.format(number(event[name])) for name, words in PACES if name in event]
        if "seconds_left" in event:
            shown.append(f"{duration(event['seconds_left'])} left")
        figures = "  ".join(shown)
        if not self.live:
            now = time.monotonic()
            if event["done"] >= event["total"] or now - self._last_line >= QUIET_SECONDS:
                self._last_line = now
                self._line(event["stage"], f"{escape(label)} {count}  {figures}".rstrip())
            return
        if label not in self._tasks:
            self._tasks[label] = self.progress.add_task(
                label, total=event["total"], label=label, count=count, figures=figures
            )
        self.progress.update(
            self._tasks[label],
            completed=event["done"],
            total=event["total"],
            count=count,
            figures=figures,
        )

    def _clear(self) -> None:
        for task in self._tasks.values():
            self.progress.remove_task(task)
        self._tasks, self._figures, self._rejected = {}, {}, Counter()


def _from_here(folder: str) -> str:
    """A path as short as it stays right in this terminal."""
    path, here = Path(folder), Path.cwd()
    return escape(str(path.relative_to(here) if path.is_relative_to(here) else path))


@contextmanager
def following(console: Console) -> Iterator[Display]:
    """A display that draws while the block runs."""
    display = Display(console)
    if not display.live:
        yield display
        return
    with display.progress:
        yield display


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A plain table: the first column left, the figures right."""
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(header):
        drawn.add_column(name, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        drawn.add_row(*(escape(cell) for cell in row))
    return drawn


COSTS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("requests", "requests", number),
    ("tokens", "tokens", number),
    ("seconds", "time", duration),
    ("memory_bytes", "memory", size),
    ("disk_bytes", "disk", size),
    ("money", "fees", lambda value: number(value) if value else "none"),
)


def plan_table(steps: Sequence[PlannedStep]) -> Table:
    """A plan: what each stage would do, why, what it would cost, and the sum (the largest, for
    memory: stages run one after the other). Costs that no stage has are left out."""
    total: dict[str, float] = {}
    for step in steps:
        for name, value in step.estimate.items():
            before = total.get(name, 0.0)
            total[name] = max(before, value) if name == "memory_bytes" else before + value
    # Fees of nothing are left out too: the reason needs the room.
    shown = [
        cost for cost in COSTS if total.get(cost[0]) or (cost[0] in total and cost[0] != "money")
    ]

    def costs(figures: Mapping[str, float]) -> list[str]:
        return [form(figures[name]) if name in figures else "" for name, _, form in shown]

    whys = ["see below" if step.action == "blocked" else step.reason for step in steps]
    rows = [
        [step.name, step.action, why, *costs(step.estimate)]
        for step, why in zip(steps, whys, strict=True)
    ]
    if total:
        rows.append(["in all", "", "", *costs(total)])
    drawn = table(["stage", "action", "why", *(title for _, title, _ in shown)], rows)
    for column in drawn.columns[1:3]:
        column.justify = "left"
    for column in (*drawn.columns[:2], *drawn.columns[3:]):
        column.no_wrap = True
    return drawn


def models_table(models: Sequence[ModelNeed]) -> Table:
    """Models: what each is for, its size, whether it is here, its licence."""
    rows = [
        [
            one.reference,
            one.role,
            parameters(one.parameters),
            "here" if one.here else size(one.download_bytes) if one.download_bytes else "unknown",
            one.licence or ("see its page" if one.page else "your own"),
            "to accept" if one.gated else "open" if one.page or one.licence else "",
        ]
        for one in models
    ]
    drawn = table(["model", "for", "parameters", "download", "licence", "terms"], rows)
    for column in (drawn.columns[1], *drawn.columns[4:]):
        column.justify = "left"
    return drawn


def terms_lines(models: Sequence[ModelNeed]) -> list[str]:
    """Where the terms are that must be accepted; too long for a table's column."""
    return [f"Terms of {one.reference}: {one.page}" for one in models if one.gated]


def parameters(count: float | None) -> str:
    """A number of weights for people: 134515008 -> 135M."""
    if count is None:
        return "unknown"
    return f"{count / 1e9:.3g}B" if count >= 1e9 else f"{count / 1e6:.3g}M"


def advice_table(advice: Sequence[Advice]) -> Table:
    """What is proposed, field by field; a field that the recipe has so already says it."""
    rows = [
        ["has it" if one.same else "--set", f"{one.field}={one.proposed}", one.why]
        for one in advice
    ]
    drawn = table(["", "proposed", "why"], rows)
    for column in drawn.columns:
        column.justify = "left"
    for column in drawn.columns[:2]:
        column.no_wrap = True
    return drawn
