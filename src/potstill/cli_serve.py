"""The commands around the service: `serve`, `keys`, `feedback`.

In: a run's name and options. Out: a running service; keys; what users said. Thin: the work is
`service.py` and `serve/`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from potstill.cli_options import JsonOption, ProjectOption, RunArgument, err, out, print_json

keys_app = typer.Typer(help="API keys of the service.", no_args_is_help=True)
KeysOption = Annotated[
    Path | None, typer.Option("--keys", help="The key file [default: keys.json of the project].")
]


def serve(
    run_name: RunArgument,
    host: Annotated[
        str, typer.Option(help="Address to listen at; any but this machine's own needs a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free port.")] = 8000,
    file: Annotated[
        str | None,
        typer.Option("--file", help="Which exported file, by name [default: the smallest]."),
    ] = None,
    keys: KeysOption = None,
    parallel: Annotated[int, typer.Option(min=1, max=256, help="Requests at once.")] = 8,
    context: Annotated[
        int, typer.Option(min=256, help="Longest prompt and answer together, in tokens.")
    ] = 2048,
    threads: Annotated[int | None, typer.Option(min=1, help="Processor threads to use.")] = None,
    queue: Annotated[int, typer.Option(min=0, help="Requests that may wait.")] = 64,
    queue_seconds: Annotated[float, typer.Option(help="Longest wait in the queue.")] = 30.0,
    deadline: Annotated[float, typer.Option(help="Longest time of an answer, in seconds.")] = 120.0,
    answer_tokens: Annotated[
        int, typer.Option(min=1, help="Longest answer where a request names no max_tokens.")
    ] = 512,
    drain: Annotated[
        float, typer.Option(min=0, help="Seconds that answers may finish in after SIGTERM.")
    ] = 30.0,
    passages: Annotated[
        bool, typer.Option(help="Answer MODEL:documents from the run's documents.")
    ] = True,
    encoder: Annotated[
        str | None,
        typer.Option(help="Search by meaning too, and serve embeddings, with this encoder."),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Another engine with OpenAI's API, not llama.cpp here."),
    ] = None,
    engine_model: Annotated[
        str, typer.Option(help="The model's name at that engine [default: its first].")
    ] = "",
    candidate: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="A candidate that gets a share of the requests."),
    ] = None,
    share: Annotated[float, typer.Option(help="The candidate's share, 0 to 1.")] = 0.1,
    assign: Annotated[
        str,
        typer.Option(help="key: all requests of a key or a conversation alike; or request."),
    ] = "key",
    cors: Annotated[
        list[str] | None, typer.Option(metavar="ORIGIN", help="A web origin that may ask.")
    ] = None,
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="Log prompts and answers, masked.")
    ] = False,
    alert: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Tell this address of drift, by a POST of JSON."),
    ] = None,
    confidence: Annotated[
        bool, typer.Option("--confidence", help="Watch how sure answers are; costs some speed.")
    ] = False,
    drift_window: Annotated[
        int, typer.Option(min=20, max=1000, help="Requests that are tested for drift at once.")
    ] = 100,
    drift_level: Annotated[
        float, typer.Option(help="How likely a window without drift may raise an alarm.")
    ] = 0.01,
    traffic_rows: Annotated[
        int, typer.Option(min=1000, help="Requests whose figures are kept; no words are.")
    ] = 50_000,
    project: ProjectOption = None,
) -> None:
    """Serve the student of a finished run with OpenAI's API, until Ctrl-C or SIGTERM; one of task
    spans answers at POST /v1/qa."""
    from pydantic import ValidationError

    from potstill.errors import UsageError
    from potstill.pipeline import open_run
    from potstill.service import check_packages, serve_run

    check_packages()
    from potstill.serve.gateway import ServeConfig

    try:
        config = ServeConfig(
            host=host,
            port=port,
            parallel=parallel,
            context_tokens=context,
            threads=threads,
            queue=queue,
            queue_seconds=queue_seconds,
            deadline_seconds=deadline,
            answer_tokens=answer_tokens,
            drain_seconds=drain,
            cors=tuple(cors or ()),
            log_prompts=log_prompts,
            confidence=confidence,
            drift_window=drift_window,
            drift_level=drift_level,
            traffic_rows=traffic_rows,
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"--{first['loc'][0]}: {first['msg']}.") from error
    this = open_run(run_name, project)
    console = err()
    console.print(f"Loading the student of {this.folder.name} ...", highlight=False)

    def started(address: str) -> None:
        console.print(f"Serving {this.folder.name} at {address}/v1", highlight=False)

    serve_run(
        this,
        config,
        file=file,
        keys=keys,
        passages=passages,
        encoder=encoder,
        engine=engine,
        engine_model=engine_model,
        alert=alert,
        candidate=candidate,
        share=share,
        assign=assign,  # type: ignore[arg-type]  # checked there
        started=started,
    )


def feedback(
    run_name: RunArgument,
    accept: Annotated[
        list[str] | None,
        typer.Option("--accept", metavar="ID", help="May be learned from; may be given again."),
    ] = None,
    reject: Annotated[
        list[str] | None,
        typer.Option("--reject", metavar="ID", help="Is not learned from; may be given again."),
    ] = None,
    answer: Annotated[
        str | None, typer.Option(help="The right answer, of the one row that is accepted.")
    ] = None,
    note: Annotated[str | None, typer.Option(help="Why, for those who read it later.")] = None,
    reviewer: Annotated[
        str | None, typer.Option("--by", help="Who decides [default: your account's name].")
    ] = None,
    state: Annotated[
        str | None, typer.Option(help="List those alone: new, accepted or rejected.")
    ] = None,
    as_json: JsonOption = False,
    project: ProjectOption = None,
) -> None:
    """List what users said of the student's answers, and decide what may be learned from."""
    from potstill import display
    from potstill.errors import UsageError
    from potstill.pipeline import open_run
    from potstill.serve.feedback import read_feedback
    from potstill.serve.review import review

    this = open_run(run_name, project)
    path = this.folder / "serve" / "feedback.sqlite"
    if state not in (None, "new", "accepted", "rejected"):
        raise UsageError(f"There is no state {state}.", "States: new, accepted, rejected.")
    if accept and reject:
        raise UsageError("Accept and reject in two commands: each is done whole or not at all.")
    if accept:
        rows = review(path, accept, "accepted", answer=answer, note=note, reviewer=reviewer)
    elif reject:
        rows = review(path, reject, "rejected", answer=answer, note=note, reviewer=reviewer)
    elif answer or note or reviewer:
        raise UsageError("--answer, --note and --by belong to --accept and --reject.")
    else:
        rows = [one for one in read_feedback(path) if state in (None, one["state"])]
    if as_json:
        print_json(rows)
        return
    from potstill.improve import question_of

    table = [
        (
            row["id"][:9],
            row["state"],
            " ".join(filter(None, (row["thumb"], row["flag"]))),
            _short(question_of(this, row)),
            _short(row["answer"]),
            _short(row["right_answer"] or row["correction"] or row["comment"] or ""),
        )
        for row in rows
    ]
    titles = ("id", "state", "said", "asked", "answered", "right, or comment")
    out().print(display.table(titles, table) if table else "There is no feedback yet.")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:57]}..."


@keys_app.command("add")
def add_key(
    name: Annotated[str, typer.Argument(help="Whose key it is.")],
    scopes: Annotated[
        list[str] | None,
        typer.Option("--scope", help="chat, documents, feedback, metrics [chat and feedback]."),
    ] = None,
    requests_per_minute: Annotated[int | None, typer.Option(min=1)] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(min=1)] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Requests at once.")] = None,
    keys: KeysOption = None,
    project: ProjectOption = None,
) -> None:
    """Make a key and print it, once; the file keeps only a hash."""
    from potstill.serve.limits import KeyLimits

    limits = KeyLimits(requests_per_minute, tokens_per_minute, concurrency)
    made = _file(keys, project).add(name, tuple(scopes or ("chat", "feedback")), limits)
    sys.stdout.write(f"{made}\n")
    err().print("Keep it safe: it cannot be shown again.", highlight=False)


@keys_app.command("list")
def list_keys(
    keys: KeysOption = None, as_json: JsonOption = False, project: ProjectOption = None
) -> None:
    """List the keys, without what is secret."""
    from dataclasses import asdict

    from potstill import display

    found = _file(keys, project).listed()
    if as_json:
        secret = {"salt", "digest"}
        print_json([{k: v for k, v in asdict(one).items() if k not in secret} for one in found])
        return
    rows = [
        (one.name, one.id, ", ".join(one.scopes), _limits(one.limits), one.created, one.revoked)
        for one in found
    ]
    titles = ("name", "id", "scopes", "limits", "created", "revoked")
    out().print(display.table(titles, rows) if rows else "There is no key yet.")


@keys_app.command("revoke")
def revoke_key(
    name: Annotated[str, typer.Argument(help="The key's name or id.")],
    keys: KeysOption = None,
    project: ProjectOption = None,
) -> None:
    """End a key; a running service refuses it from the next request on."""
    ended = _file(keys, project).revoke(name)
    err().print(f"Revoked {ended.name} ({ended.id}).", highlight=False)


def _limits(limits: Any) -> str:
    words = (
        (limits.requests_per_minute, "requests/min"),
        (limits.tokens_per_minute, "tokens/min"),
        (limits.concurrency, "at once"),
    )
    return ", ".join(f"{value} {unit}" for value, unit in words if value) or "none"


def _file(keys: Path | None, project: Path | None) -> Any:
    from potstill.serve.auth import KEYS, KeyFile

    return KeyFile(keys or (project or Path.cwd()) / KEYS)
