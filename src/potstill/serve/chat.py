"""Talks to an exported student in the terminal, streaming.

In: a GGUF file, the run's passages, and how the student was taught to be asked. Out: the answer on
standard output as it is written; hints and sources on standard error.
Knows nothing of runs or recipes: the caller looks the files up.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from rich.console import Console

from potstill.core.machine import usable_cores
from potstill.errors import PotstillError
from potstill.inference.base import Request, TextModel
from potstill.inference.open import open_model
from potstill.records import Chunk, Turn
from potstill.serve.loops import UntilLoop
from potstill.serve.retrieval import PassageIndex

Ask = Callable[[str, str], str]
"""(passage, question) -> the user turn as the student was taught it. No passage: ''."""

HELP = (
    "Ask a question and press Enter. /passage shows the last passage, /help this line, "
    "Ctrl-C stops an answer, /quit or Ctrl-D ends."
)


def converse(
    student: Path,
    chunks: Iterable[Chunk],
    ask: Ask,
    *,
    question: str | None = None,
    max_tokens: int = 256,
    context_tokens: int = 2048,
    threads: int | None = None,
) -> None:
    """Answer `question`, or read questions until the end of input.

    Each question is answered for itself, from the passage that fits it best: that is what the
    student was taught. Without `chunks` the student is asked from memory.
    """
    index = PassageIndex(chunks)
    console = Console(stderr=True)
    opened = open_model(
        str(student),
        threads=threads or usable_cores(),
        parallel=1,
        context_tokens=context_tokens,
    )
    with opened as model:
        if question is not None:
            _answer(model, index, ask, question, max_tokens, console)
            return
        console.print(f"[bold]{student.name}[/]  [dim]{HELP}[/]", highlight=False)
        _loop(model, index, ask, max_tokens, console)


def _loop(
    model: TextModel, index: PassageIndex, ask: Ask, max_tokens: int, console: Console
) -> None:
    passage: Chunk | None = None
    while True:
        try:
            console.print("\n[bold green]you>[/] ", end="")
            line = input().strip()
        except KeyboardInterrupt:
            console.print("\n[dim]/quit or Ctrl-D ends[/]")
            continue
        except EOFError:
            console.print()
            return
        if line in {"/quit", "/exit"}:
            return
        if line == "/passage":
            words = passage.text if passage else "There is no passage yet."
            console.print(words, highlight=False, markup=False)
        elif line.startswith("/"):
            unknown = "" if line == "/help" else f"There is no command {line.split()[0]}. "
            console.print(f"{unknown}{HELP}", highlight=False, markup=False)
        elif line:
            try:
                passage = _answer(model, index, ask, line, max_tokens, console)
            except KeyboardInterrupt:
                console.print("\n[dim]stopped[/]")
            except PotstillError as error:  # one bad question does not end the conversation
                console.print(f"[red]{error}[/]", highlight=False)


def _answer(
    model: TextModel,
    index: PassageIndex,
    ask: Ask,
    question: str,
    max_tokens: int,
    console: Console,
) -> Chunk | None:
    found = index.search(question, limit=1)
    passage = found[0] if found else None
    if passage is None and len(index):
        console.print(
            "[dim]nothing in the documents fits the question; this is from memory[/]",
            highlight=False,
        )
    content = ask(passage.text if passage else "", question)
    request = Request(messages=(Turn(role="user", content=content),), max_tokens=max_tokens)
    pieces = UntilLoop(model.stream(request))
    said = False
    for piece in pieces:
        said = said or bool(piece.strip())
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    if pieces.looped:
        console.print("[dim]stopped: the student was repeating itself[/]", highlight=False)
    if not said:
        console.print("[dim]the student gave no answer[/]", highlight=False)
    if passage is not None:
        console.print(f"[dim]from {passage.source}{_pages(passage)}[/]", highlight=False)
    return passage


def _pages(passage: Chunk) -> str:
    if not passage.pages:
        return ""
    numbers = ", ".join(str(page) for page in passage.pages)
    return f", page{'s' if len(passage.pages) > 1 else ''} {numbers}"
