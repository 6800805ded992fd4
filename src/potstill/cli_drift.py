"""`potstill drift`: whether a service is still asked what its student was taught.

In: a run's name. Out: the newest window's signals and the alarms so far; a page; an alarm marked as
false. Thin: the work is `drifting.py` and `serve/`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from potstill.cli_options import JsonOption, ProjectOption, RunArgument, err, out, print_json


def drift(
    run_name: RunArgument,
    dismiss: Annotated[
        int | None, typer.Option(metavar="ID", help="Mark this alarm as false.")
    ] = None,
    page: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the page about it to this file.")
    ] = None,
    as_json: JsonOption = False,
    project: ProjectOption = None,
) -> None:
    """Say whether live questions and answers have moved away from what the student was taught."""
    from potstill import drifting
    from potstill.pipeline import open_run

    this = open_run(run_name, project)
    if dismiss is not None:
        drifting.dismiss(this, dismiss)
        err().print(f"Alarm {dismiss} is marked as false.", highlight=False)
    if page is not None:
        drifting.write_drift_page(this, page)
        err().print(f"Page     {page}", highlight=False)
    if as_json:
        print_json(drifting.read_drift(this))
    elif dismiss is None and page is None:
        _show(drifting.read_drift(this))


def _show(found: dict[str, Any]) -> None:
    from rich.markup import escape

    from potstill import display

    console = out()
    if not found["variants"]:
        console.print(f"No request was answered by the service of {escape(found['run'])} yet.")
    for name, about in found["variants"].items():
        own = [one for one in found["windows"] if one["variant"] == name]
        console.print(f"[bold]{escape(name)}[/]  {_counts(about)}", highlight=False)
        if own:
            _show_window(own[-1], console, display)
    if found["off"]:
        console.print(f"Nothing is compared: {escape(found['off'])}", highlight=False)
    alarms = [one for one in found["windows"] if one["alarm"]]
    if alarms:
        console.print()
        rows = [(str(one["id"]), one["variant"], _moved(one), _state(one)) for one in alarms[-20:]]
        console.print(display.table(("alarm", "student", "what moved", "state"), rows))


def _counts(about: dict[str, Any]) -> str:
    if not about["windows"]:
        return f"{about['waiting']} requests so far: too few for a window."
    return (
        f"{about['state']}: {about['windows']} windows, {about['alarms']} with an alarm, "
        f"{about['dismissed']} of them marked as false (chance alone allows for "
        f"{about['by_chance']}); {about['waiting']} requests wait for the next."
    )


def _show_window(window: dict[str, Any], console: Any, display: Any) -> None:
    from potstill.serve.windows import SIGNALS

    rows = [
        (
            SIGNALS[one["name"]],
            "PSI" if one["statistic"] == "psi" else "MMD²",
            f"{one['value']:.4f}",
            f"{one['p']:.4f}",
            f"{one['adjusted']:.4f}",
            "moved" if one["alarm"] else "",
        )
        for one in window["verdict"]["signals"]
    ]
    titles = (f"window {window['id']}", "", "value", "p", "after Holm", "")
    console.print(display.table(titles, rows))
    for name, why in window["verdict"]["untested"].items():
        console.print(f"Not tested: {SIGNALS[name]} ({why}).", highlight=False)


def _moved(window: dict[str, Any]) -> str:
    return ", ".join(one["name"] for one in window["verdict"]["signals"] if one["alarm"])


def _state(window: dict[str, Any]) -> str:
    return "marked as false" if window["dismissed"] is not None else "stands"
