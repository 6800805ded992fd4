"""A search in the terminal: a line a trial, and where there is a terminal a bar for each under way.

In: the events of `run_study`. Out: text on standard error; a table of the best trials. Knows
nothing of how a search is done.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from potstill import display
from potstill.distill.outcome import DISTILLED
from potstill.tune import words
from potstill.tune.study import Study

if TYPE_CHECKING:
    from potstill.tune.search import Finished

MOST_ROWS = 10
COLOURS = {"complete": "green", "pruned": "yellow", "failed": "red"}


class SearchDisplay:
    """Follows one search. Call it with each event."""

    def __init__(self, console: Console, study: Study) -> None:
        self.console, self.study = console, study
        self.live = console.is_terminal
        self.stages = display.Display(console)  # of what all trials share
        self.progress = Progress(
            TextColumn("  {task.fields[label]:<10}"),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[step]}"),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[figure]}"),
            console=console,
            transient=True,
        )
        self._tasks: dict[int, Any] = {}

    def __call__(self, event: dict[str, Any]) -> None:
        handler = getattr(self, f"_on_{event['kind']}", None)
        if handler is not None and ("trial" in event or event["kind"] == "study_warning"):
            handler(event)
        elif "trial" not in event:
            self.stages(event)

    def _line(self, head: str, text: str) -> None:
        self.console.print(f"[bold]{head:<9}[/] {text}", highlight=False, soft_wrap=True)

    def _on_study_warning(self, event: dict[str, Any]) -> None:
        self._line("study", f"[yellow]note:[/] {escape(event['message'])}")

    def _on_trial_started(self, event: dict[str, Any]) -> None:
        number = event["trial"]
        if self.live:
            self._tasks[number] = self.progress.add_task(
                "", label=f"trial {number}", step="prepares", figure="", total=None
            )
        elif event["goes_on"]:
            self._line(f"trial {number}", "goes on from where it was")

    def _on_progress(self, event: dict[str, Any]) -> None:
        task = self._tasks.get(event["trial"])
        if task is None:
            return
        step = event.get("step") or event["stage"]
        step = "trains" if step == DISTILLED else step
        count = f"{step} {display.number(int(event['done']))}/{display.number(event['total'])}"
        self.progress.update(task, completed=event["done"], total=event["total"], step=count)

    def _on_validated(self, event: dict[str, Any]) -> None:
        task = self._tasks.get(event["trial"])
        if task is not None:
            figure = f"{event['name']} {display.number(event['value'])}"
            self.progress.update(task, figure=figure)

    def _on_trial_finished(self, event: dict[str, Any]) -> None:
        number = event["trial"]
        if number in self._tasks:
            self.progress.remove_task(self._tasks.pop(number))
        state = event["state"]
        took = display.duration(event["notes"].get("seconds", 0.0))
        parts = [f"[{COLOURS[state]}]{words.STATES[state]}[/]"]
        parts += [f"{name} {display.number(value)}" for name, value in event["figures"].items()]
        reason = event["notes"].get("reason")
        parts += [escape(str(reason))] if reason else []
        parts.append(f"in {took}")
        values = ", ".join(
            f"{field.rpartition('.')[2]} {words.shown(value)}"
            for field, value in event["values"].items()
        )
        best = event["best"]
        if best:
            parts.append(f"[dim]{escape(values)}[/]")
            parts.append("best: trial " + ", ".join(str(one) for one in best))
        self._line(f"trial {number}", "; ".join(parts))


@contextmanager
def searching(console: Console, study: Study) -> Iterator[SearchDisplay]:
    """A display that draws while the block runs."""
    shown = SearchDisplay(console, study)
    if not shown.live:
        yield shown
        return
    with shown.progress:
        yield shown


def trials_table(study: Study, finished: Finished) -> Table:
    """The best complete trials, the best first, with their values."""
    names = list(study.config.objective)
    sign = 1 if study.config.objective[names[0]] == "minimize" else -1
    best = {one.number for one in finished.best}
    complete = [one for one in finished.trials if one.state == "complete"]
    complete.sort(key=lambda one: (one.number not in best, sign * one.figures[names[0]]))
    fields = [one.field for one in study.dimensions]
    header = ["trial", *names, *(field.rpartition(".")[2] for field in fields)]
    rows: list[Sequence[str]] = [
        [
            f"{one.number}{' *' if one.number in best else ''}",
            *(display.number(one.figures[name]) for name in names),
            *(words.shown(one.values[field]) for field in fields),
        ]
        for one in complete[: max(MOST_ROWS, len(best))]
    ]
    return display.table(header, rows)
