"""The commands of the feedback loop: `improve`, `promote`, `rollback`, `versions`, `ab`.

In: a run's name and options. Out: candidates, tables of the gate, what serves. Thin: the work is
`improve/`, `evaluate/gate.py`, `evaluate/trials.py` and `serve/versions.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from potstill.cli_options import (
    JsonOption,
    ProjectOption,
    RunArgument,
    SetOption,
    err,
    out,
    print_json,
)

if TYPE_CHECKING:
    from potstill.improve import ImproveConfig, Prepared

ByOption = Annotated[
    str | None, typer.Option("--by", help="Who decides [default: your account's name].")
]
STATES = {
    "passed": "[green]passed[/]",
    "unproven": "[yellow]unproven[/]",
    "failed": "[red]failed[/]",
}
TAKES = "A running service takes it within seconds and loses no request; others at their start."


def improve(
    run_name: RunArgument,
    name: Annotated[
        str | None, typer.Option(help="The candidate's name [default: RUN-2, RUN-3 ...].")
    ] = None,
    replay: Annotated[float, typer.Option(min=0, help="Old training rows for each new one.")] = 4.0,
    held_out: Annotated[
        float, typer.Option(help="Share of the questions that the candidate is judged by.")
    ] = 0.3,
    fewest: Annotated[
        int, typer.Option(min=4, help="Accepted questions that it needs at least.")
    ] = 10,
    mask: Annotated[
        bool, typer.Option("--mask", help="Put [EMAIL] and the like for personal data.")
    ] = False,
    metric: Annotated[
        str, typer.Option(help="What must get better on the held-out questions.")
    ] = "f1",
    epochs: Annotated[
        float | None, typer.Option(help="Passes over the rows [default: the recipe's].")
    ] = None,
    set_: SetOption = None,
    prepare_only: Annotated[
        bool, typer.Option("--prepare", help="Leave rows and recipe, and train nothing.")
    ] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Processor threads to use.")] = None,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Run though memory or disk look too small.")
    ] = False,
    as_json: JsonOption = False,
    project: ProjectOption = None,
) -> None:
    """Train a candidate on accepted feedback and old rows, and let the gate judge it."""
    from potstill import display
    from potstill.improve import improve as improve_run
    from potstill.improve import prepare
    from potstill.pipeline import open_run

    config = _config(replay=replay, held_out=held_out, fewest=fewest, mask=mask)
    overrides = [*(set_ or ()), *([f"distill.epochs={epochs}"] if epochs is not None else [])]
    this, console = open_run(run_name, project), err()

    def begun(made: Prepared) -> None:
        console.print(_account(made), highlight=False, soft_wrap=True)

    if prepare_only:
        made = prepare(this, config, name=name, overrides=overrides)
        begun(made)
        console.print(f"Plan     potstill plan {made.file}", highlight=False, soft_wrap=True)
        return
    with display.following(console) as shown:
        done = improve_run(
            this,
            config,
            name=name,
            overrides=overrides,
            metric=metric,
            threads=threads,
            watch=shown,
            anyway=anyway,
            begun=begun,
        )
    if as_json:
        print_json({"candidate": done.prepared.name, "gate": done.gate})
        return
    show_gate(done.prepared.name, done.gate)
    tables = out()
    tables.print()
    tables.print(f"Report   {done.run.folder / 'report.html'}", highlight=False, soft_wrap=True)
    if done.gate["state"] != "failed":
        more = " --accept-unproven" if done.gate["state"] == "unproven" else ""
        tables.print(
            f"Promote  potstill promote {this.folder.name} {done.prepared.name}{more}",
            highlight=False,
            soft_wrap=True,
        )


def _config(**fields: Any) -> ImproveConfig:
    from pydantic import ValidationError

    from potstill.errors import UsageError
    from potstill.improve import ImproveConfig

    try:
        return ImproveConfig(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        option = f"--{str(first['loc'][0]).replace('_', '-')}: " if first["loc"] else ""
        raise UsageError(f"{option}{first['msg'].removeprefix('Value error, ')}.") from error


def _account(made: Prepared) -> str:
    """What the rows are, in one line."""
    new = {split: len(ids) for split, ids in made.about["feedback"].items()}
    return (
        f"{made.name} goes on from {made.origin}: {new['train']} rows of feedback and "
        f"{made.about['replayed']} old ones to learn from, {new['validation']} to validate, "
        f"{len(made.about['target'])} new ones to be judged by."
    )


def show_gate(name: str, gate: Mapping[str, Any]) -> None:
    """The gate's figures as a table, and its reasons."""
    from rich.markup import escape

    from potstill import display
    from potstill.evaluate import words

    rows = [
        [
            slice_name,
            words.MEASURES[metric].title,
            words.figure(metric, one["current"]),
            words.figure(metric, one["candidate"]),
            " to ".join(words.figure(metric, one[end]) for end in ("low", "high")),
            one["outcome"],
            str(one["n"]),
        ]
        for slice_name, part in (("old rows", "kept"), ("feedback", "target"))
        for metric, one in gate[part].items()
    ]
    titles = ("rows", "metric", "current", "candidate", "difference", "candidate is", "n")
    console = out()
    console.print()
    console.print(display.table(titles, rows))
    console.print()
    console.print(f"Gate     {name}: {STATES[gate['state']]}", highlight=False)
    for reason in gate["reasons"]:
        console.print(f"         {escape(reason)}", highlight=False, soft_wrap=True)
    if gate.get("smallest_drop") is not None:
        drop = words.figure(gate["metric"], gate["smallest_drop"])
        title = words.MEASURES[gate["metric"]].title
        console.print(
            f"         the old rows show a change of {drop} in {title} four times of five; a "
            "smaller one may go unseen",
            highlight=False,
            soft_wrap=True,
        )
    if gate.get("tries", 1) > 1:
        console.print(
            f"         try {gate['tries']} on the same held-out rows: the more tries, the likelier "
            "one passes by chance",
            highlight=False,
            soft_wrap=True,
        )


def promote(
    run_name: RunArgument,
    candidate: Annotated[str, typer.Argument(help="The candidate's name.")],
    file: Annotated[
        str | None,
        typer.Option("--file", help="Which exported GGUF file, by name [default: the smallest]."),
    ] = None,
    accept_unproven: Annotated[
        bool, typer.Option("--accept-unproven", help="Though too few rows tell if it is better.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Though it has not passed the gate; it is recorded.")
    ] = False,
    by: ByOption = None,
    project: ProjectOption = None,
) -> None:
    """Let a candidate that passed the gate serve under the run's name."""
    from potstill.improve import promote as promote_candidate
    from potstill.pipeline import open_run

    this = open_run(run_name, project)
    now = promote_candidate(
        this, candidate, file=file, force=force, accept_unproven=accept_unproven, by=by
    )
    err().print(f"{this.folder.name} is served by {now.version}. {TAKES}", highlight=False)


def rollback(run_name: RunArgument, by: ByOption = None, project: ProjectOption = None) -> None:
    """Let the version before the current one serve again."""
    from potstill.improve import rollback as roll_back
    from potstill.pipeline import open_run

    this = open_run(run_name, project)
    now = roll_back(this, by=by)
    err().print(f"{this.folder.name} is served by {now.version} again. {TAKES}", highlight=False)


def versions(
    run_name: RunArgument,
    candidate: Annotated[
        str | None, typer.Argument(help="Show the gate's figures of this candidate.")
    ] = None,
    as_json: JsonOption = False,
    project: ProjectOption = None,
) -> None:
    """List what serves a run, what served it before, and what the gate says of candidates."""
    from potstill import display
    from potstill.errors import UsageError
    from potstill.improve import versions_of
    from potstill.pipeline import open_run

    state = versions_of(open_run(run_name, project)).read()
    if candidate is not None:
        if candidate not in state["candidates"]:
            names = ", ".join(state["candidates"]) or "none"
            raise UsageError(f"There is no candidate {candidate}.", f"Candidates: {names}.")
        gate = state["candidates"][candidate]["gate"]
        if as_json:
            print_json(gate)
        else:
            show_gate(candidate, gate)
        return
    if as_json:
        print_json(state)
        return
    known = dict.fromkeys([one["version"] for one in state["serving"]]) | state["candidates"]
    out().print(display.table(TITLES, [_version_row(one, state) for one in known]))


TITLES = ("version", "state", "gate", "from", "since", "by", "note")


def _version_row(name: str, state: Mapping[str, Any]) -> list[str]:
    places = [one for one in state["serving"] if one["version"] == name]
    candidate = state["candidates"].get(name)
    serves = bool(places) and places[-1] is state["serving"][-1]
    last = places[-1] if places else {}
    note = "forced" if last.get("forced") else "unproven" if last.get("unproven") else ""
    return [
        name,
        "serves" if serves else "before it" if places else "candidate",
        candidate["gate"]["state"] if candidate else "",
        candidate["from"] if candidate else "",
        str(last.get("since") or (candidate or {}).get("made", ""))[:16].replace("T", " "),
        str(last.get("by", "")),
        note,
    ]


def ab(
    run_name: RunArgument,
    candidate: Annotated[
        str | None, typer.Argument(help="The candidate [default: the last that got a share].")
    ] = None,
    as_json: JsonOption = False,
    project: ProjectOption = None,
) -> None:
    """Compare a candidate with the version that serves, by votes and on live traffic."""
    from potstill import display
    from potstill.improve import compare_traffic
    from potstill.pipeline import open_run

    found = compare_traffic(open_run(run_name, project), candidate)
    if as_json:
        print_json(found)
        return
    votes, sides = found["votes"], ("current", "candidate")
    rows = [
        ["requests", *(str(found["requests"][found[side]]) for side in sides), "", ""],
        ["thumbs up", *(f"{votes[side]['up']} of {votes[side]['all']}" for side in sides),
         _between(votes["difference"], 100, " points"), votes["outcome"]],
    ]  # fmt: skip
    for name, (title, scale, unit) in FIGURES.items():
        if name in found["figures"]:
            one = found["figures"][name]
            cells = (f"{scale * one[side]['value']:.3g}{unit}" for side in sides)
            rows.append([title, *cells, _between(one["difference"], scale, unit), one["outcome"]])
    console = out()
    titles = ("", found["current"], found["candidate"], "difference", "candidate is")
    console.print(display.table(titles, rows))
    console.print()
    if votes["p"] is not None:
        console.print(f"Fisher's exact test of the votes: p = {votes['p']:.3g}.", highlight=False)
    for sentence in found["said"]:
        console.print(sentence, highlight=False, soft_wrap=True)


FIGURES = {
    "first_token_seconds": ("first token", 1000, " ms"),
    "seconds": ("whole answer", 1000, " ms"),
    "completion_tokens": ("tokens of an answer", 1, ""),
    "refused": ("refusals", 100, "%"),
    "failed": ("failures", 100, "%"),
}
"""Figure -> its name, scale and unit."""


def _between(difference: Mapping[str, Any] | None, scale: float, unit: str) -> str:
    if difference is None:
        return ""
    value, low, high = (f"{scale * difference[part]:+.3g}" for part in ("value", "low", "high"))
    return f"{value}{unit}, {low} to {high}"
