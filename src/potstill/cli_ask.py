"""`potstill ask`: one question to a run's student that marks answers.

In: a run, a question, a passage or the run's own documents. Out: the answer with its probability
and place on standard output. Heavy packages are imported when the command needs them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from potstill.cli_options import JsonOption, ProjectOption, RunArgument, out, print_json
from potstill.errors import InputError, UsageError

if TYPE_CHECKING:
    from potstill.pipeline import Run

TRIED = 3
"""Passages of the run's documents that are read for a question, the best by its words."""


def ask(
    run_name: RunArgument,
    question: Annotated[str, typer.Argument(help="The question.")],
    passage: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Read this text file; - for standard input [default: the run's]."
        ),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option("--file", help="Which exported ONNX file, by name [default: PyTorch]."),
    ] = None,
    as_json: JsonOption = False,
    project: ProjectOption = None,
) -> None:
    """Ask the student of a run of task spans: the answer, how probable it is, where it stands."""
    from potstill.pipeline import open_run

    this = open_run(run_name, project)
    if this.task != "spans":
        raise UsageError(
            f"The student of {this.folder.name} writes its answers.",
            f"Talk to it with: potstill chat {this.folder}",
        )
    texts = [("", _text(passage))] if passage is not None else _of_run(this, question)
    from potstill.models.spans.reader import SpanReader

    this.artifact("export")  # an unfinished run is one clear line
    onnx = None if file is None else this.exported(file)
    reader = SpanReader(this.folder / "export" / "safetensors", onnx=onnx)
    told = reader.answer_from(question, [text for _, text in texts])
    found, (source, text) = told.answer, texts[told.passage or 0]
    if as_json:
        print_json(
            {
                "answer": found.answer,
                "score": found.score,
                "start": found.start,
                "end": found.end,
                "no_answer": found.no_answer,
                "source": source,
                "passage": text,
            }
        )
        return
    console = out()
    where = f" of {source}" if source else ""
    if not found.answer:
        console.print(f"no answer ({found.score:.0%})", highlight=False)
        return
    console.print(found.answer, highlight=False, markup=False)
    console.print(
        f"{found.score:.0%}, characters {found.start} to {found.end}{where}",
        highlight=False,
        markup=False,
        style="dim",
    )


def _text(passage: str) -> str:
    """The passage's text. Errors: InputError for a file that cannot be read as text."""
    if passage == "-":
        return sys.stdin.read()
    try:
        return Path(passage).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = "is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else "cannot be read"
        raise InputError(
            f"{passage} {reason}.", "Name a text file, or - for standard input."
        ) from error


def _of_run(this: Run, question: str) -> list[tuple[str, str]]:
    """(where it is from, text) of the run's passages that fit best. Errors: InputError for none."""
    from potstill.models.spans.rows import passages
    from potstill.serve.retrieval import PassageIndex

    index = PassageIndex(passages(this.artifact("ingest")).values())
    found = index.search(question, TRIED)
    index.close()
    if not found:
        raise InputError(
            "No passage of the run's documents has a word of the question.",
            "Ask in the documents' words, or give a text of your own (--passage FILE).",
        )
    return [(_place(chunk.source, chunk.pages, chunk.start), chunk.text) for chunk in found]


def _place(source: str, pages: tuple[int, ...], start: int) -> str:
    numbers = ", ".join(map(str, pages))
    page = f", page{'s' if len(pages) > 1 else ''} {numbers}" if pages else ""
    return f"the passage at {start} in {source}{page}"
