"""`potstill eval` and `potstill compare`: score stored answers, judge them, set runs side by side.

In: runs or files on the command line. Out: tables or JSON on standard output, files below a run or
in a folder of its own. Heavy packages are imported when a command needs them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from potstill.cli_options import JsonOption, ProjectOption, out, print_json
from potstill.errors import UsageError

SHOWN = ("f1", "em", "bleu", "chrf", "rougeL", "refusal_rate", "grounded")
PAIR = "distilled,teacher"


def eval_command(
    run_name: Annotated[
        str | None, typer.Argument(metavar="RUN", help="A run's name or folder.")
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(help="Score the answers of this file instead of a run's; needs no model."),
    ] = None,
    golds: Annotated[
        Path | None,
        typer.Option(help="Their gold answers: a SQuAD file, or rows with id and answers."),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Let this model judge the run's answers, in pairs."),
    ] = None,
    judge_url: Annotated[
        str | None,
        typer.Option(
            "--judge-url",
            metavar="URL",
            help="Where a judge openai:MODEL is [default: where the run's own teacher was].",
        ),
    ] = None,
    judge_key: Annotated[
        str | None,
        typer.Option(
            "--judge-key", metavar="VARIABLE", help="Environment variable that holds its key."
        ),
    ] = None,
    pair: Annotated[
        str | None,
        typer.Option(metavar="MODEL,MODEL", help=f"Whose answers are judged [default: {PAIR}]."),
    ] = None,
    graded: Annotated[
        bool, typer.Option("--graded", help="Grade each answer from 1 to 5 instead of in pairs.")
    ] = False,
    rubric: Annotated[
        Path | None, typer.Option(help="Text file that says what each grade is for.")
    ] = None,
    votes: Annotated[
        Path | None,
        typer.Option(help="Sum up these votes, a person's or a model's, instead of asking."),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            metavar="lm-eval:TASK|FILE",
            help="Run a task of lm-eval, or the questions of a file, on student and teacher.",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=2, help="First rows only, of the judged ones or of a suite's.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Processor threads to use.")] = None,
    as_json: JsonOption = False,
    project: ProjectOption = None,
) -> None:
    """Score answers again without a model, have them judged, or run an outside suite."""
    wanted = [one for one in (predictions, judge, votes, suite) if one is not None]
    if len(wanted) > 1:
        raise UsageError("Choose one of --predictions, --judge, --votes and --suite.")
    _check_belongs("--golds", golds, {"--predictions": predictions})
    asked = {"--judge": judge}
    _check_belongs("--graded and --rubric", graded or rubric, asked)
    _check_belongs("--judge-url and --judge-key", judge_url or judge_key, asked)
    _check_belongs("--pair", pair, {**asked, "--votes": votes})
    _check_belongs("--limit and --threads", limit or threads, {**asked, "--suite": suite})
    if run_name is not None and (predictions or votes) is not None:
        what = "predictions" if votes is None else "votes"
        raise UsageError(f"Name a run or a file of {what}, not both.")
    if predictions is not None:
        from potstill.evaluate.predictions import score_file

        _show_scores(score_file(predictions, golds), as_json)
        return
    if votes is not None:
        from potstill.cli_judge import pair_of
        from potstill.evaluate.judge import pair_summary
        from potstill.evaluate.votes import read_votes

        _show(pair_summary(read_votes(votes), pair_of(pair or PAIR)), as_json)
        return
    if run_name is None:
        raise UsageError("What is to be scored?", "Name a run, or --predictions FILE.")
    if suite is not None:
        from potstill.cli_suites import run_file, run_task

        if Path(suite).is_file():
            _show_scores(run_file(run_name, Path(suite), limit, threads, project), as_json)
        else:
            _show(run_task(run_name, suite, limit, threads, project), as_json)
    elif judge is not None:
        from potstill.cli_judge import Judge, judge_answers, pair_of, read_rubric

        text = read_rubric(rubric) if rubric is not None else "" if graded else None
        models, who = pair_of(pair or PAIR), Judge(judge, judge_url, judge_key)
        _show(judge_answers(run_name, who, models, text, limit, threads, project), as_json)
    else:
        from potstill.evaluate.again import score_run
        from potstill.evaluate.results import Resampling
        from potstill.pipeline import open_run

        this = open_run(run_name, project)
        settings = this.report["settings"]
        resampling = Resampling(settings["seed"], settings["resamples"], settings["level"])
        _show_scores(
            score_run(
                this.artifact("evaluate").path("predictions.jsonl"),
                this.artifact("curate").path("test.jsonl"),
                resampling,
                spans=this.task == "spans",
            ),
            as_json,
        )


def compare_command(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN RUN...", help="Runs' names or folders.")
    ],
    by: Annotated[str, typer.Option(help="The metric that ranks, such as f1, em or kl.")] = "f1",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for the pages [default: compare, here]."),
    ] = None,
    as_json: JsonOption = False,
    project: ProjectOption = None,
) -> None:
    """Set runs side by side: a leaderboard, quality against size and speed, rows that got worse."""
    from potstill.evaluate.side_by_side import compared, write_comparison
    from potstill.pipeline import open_run

    opened = [open_run(name, project) for name in runs]
    found, paths = write_comparison(
        [
            compared(
                this.folder.resolve().name,
                this.report,
                this.artifact("evaluate").path("predictions.jsonl"),
            )
            for this in opened
        ],
        output or (project or Path.cwd()) / "compare",
        by=by,
    )
    if as_json:
        print_json(found)
        return
    from potstill import display
    from potstill.evaluate.compare_page import board_table

    console = out()
    console.print(display.table(*board_table(found)))
    console.print()
    for note in found["notes"]:
        console.print(note, highlight=False)
    for path in paths:
        console.print(str(path), highlight=False)


def _check_belongs(options: str, given: object, owners: Mapping[str, object]) -> None:
    """Errors: UsageError for options that would do nothing in this call."""
    if given and all(owner is None for owner in owners.values()):
        verb = "belong" if " and " in options else "belongs"
        raise UsageError(f"{options} {verb} to {' and '.join(owners)}.")


def _show_scores(found: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    from potstill import display
    from potstill.evaluate import words
    from potstill.evaluate.details import cell, with_range

    owned = [m for m in SHOWN if any(m in one["metrics"] for one in found["models"].values())]
    models = found["models"]
    rows = [
        [
            words.MEASURES[metric].title,
            *(_stacked(cell(metric, one["metrics"].get(metric))) for one in models.values()),
        ]
        for metric in owned
    ]
    console = out()
    console.print(display.table(["", *map(words.model_name, models)], rows))
    examples = found["examples"]
    console.print(
        f"\n{examples['evaluated']} rows, {100 * found['settings']['level']:g}% intervals."
    )
    for name, number in examples["missing"].items():
        if number:
            console.print(f"{name}: {number} rows have no answer and count as empty.")
    for name, number in examples["unknown"].items():
        if number:
            console.print(f"{name}: {number} answers are to rows without gold answers.")
    for pair, metrics in found["differences"].items():
        a, _, b = pair.partition("_minus_")
        for metric in ("f1", "em"):
            if metric in metrics:
                console.print(
                    f"{a} against {b}, {words.MEASURES[metric].title}: "
                    f"{with_range(metric, metrics[metric])}, "
                    + {"better": f"{a} is better", "worse": f"{b} is better"}.get(
                        words.outcome(metric, metrics[metric]), "not told apart"
                    ),
                    highlight=False,
                )


def _stacked(made: Mapping[str, Any]) -> str:
    """A value over its interval: beside it, four models fit no terminal's width."""
    value = str(made["value"])
    return f"{value}\n{made['low']} to {made['high']}" if made["spread"] else value


def _show(found: Mapping[str, Any], as_json: bool) -> None:
    """A flat account: one line a figure."""
    if as_json:
        print_json(found)
        return
    console = out()
    for name, value in _flat(found):
        console.print(f"{name:<36} {value}", highlight=False, markup=False)


def _flat(value: Any, path: str = "") -> list[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        return [
            pair
            for key, part in value.items()
            for pair in _flat(part, f"{path} {key}".strip().replace("_", " "))
        ]
    if isinstance(value, list | tuple):
        return [(path, ", ".join(map(str, value)))]
    text = f"{value:.4g}" if isinstance(value, float) else "unknown" if value is None else value
    return [(path, str(text))]
