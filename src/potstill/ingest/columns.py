"""Which column of a file holds what: as the recipe names them, or by their usual names.

In: a file's column names (or a row's keys) and a ColumnsConfig. Out: `Columns`.
Knows no row and no file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

from potstill.ingest.content import UnusableError
from potstill.ingest.rows_config import ColumnsConfig

# In the order in which they are taken; compared without case, spaces and marks.
QUESTION = (
    "question", "questiontext", "query", "prompt", "instruction", "problem", "input",
    "userprompt", "user", "frage", "pregunta", "q",
)  # fmt: skip
ANSWER = (
    "answer", "answers", "correctanswer", "rightanswer", "goldanswer", "answertext", "completion",
    "output", "response", "target", "solution", "answerkey", "correctoption", "correct",
    "referenceanswer", "assistant", "antwort", "respuesta", "reponse", "a",
)  # fmt: skip
CONTEXT = ("context", "passage", "paragraph", "sourcetext", "evidence", "background")
OPTIONS = ("options", "choices", "alternatives", "candidates")
REASONING = ("reasoning", "rationale", "explanation", "chainofthought", "cot")
LABEL = ("label", "category", "class", "topic", "subject")
DOCUMENT = ("document", "documentid", "docid", "title", "article")
MESSAGES = ("messages", "conversations", "conversation", "turns", "chat")
IMPOSSIBLE = ("isimpossible", "unanswerable")
OPTION = re.compile(r"^(?:option|opt|op|choice|alternative|answer)?([a-j]|\d\d?)$")
OPTION_STARTS = ("a", "0", "1")


@dataclass(frozen=True)
class Columns:
    """Names of the columns that hold each part of a row; empty where there is none."""

    question: str = ""
    addition: str = ""
    """Alpaca's `input`: what the instruction is applied to."""
    answer: str = ""
    context: str = ""
    options: tuple[str, ...] = ()
    """One column that holds them all, or one for each."""
    reasoning: str = ""
    label: str = ""
    document: str = ""
    id: str = ""
    messages: str = ""
    impossible: str = ""


def find_columns(names: Iterable[str], config: ColumnsConfig) -> Columns:
    """Errors: UnusableError with the reason wrong_columns."""
    known = list(names)
    plain: dict[str, str] = {}
    for name in known:
        plain.setdefault(re.sub(r"[\W_]", "", name.casefold()), name)
    options = _options(plain, known, config)
    taken = set(options)

    def one(field: str, usual: tuple[str, ...]) -> str:
        named = str(getattr(config, field))
        found = _named(named, field, known) if named else ""
        if not named:
            usual_names = (plain[name] for name in usual if name in plain)
            found = next((name for name in usual_names if name not in taken), "")
        taken.add(found)
        return found

    messages = one("messages", MESSAGES)
    # What the recipe names is nothing else, whatever it is called.
    taken.update(name for name in (config.question, config.answer, config.context) if name)
    question, answer = one("question", QUESTION), one("answer", ANSWER)
    if not messages and not (question and answer):
        lacking = "a question" if not question else "an answer"
        raise UnusableError(
            "wrong_columns",
            f"no column holds {lacking}; the columns are {_listed(known)}; name them in "
            "ingest.rows.columns",
        )
    addition = plain.get("input", "") if not config.question else ""
    return Columns(
        question=question,
        addition="" if addition in taken else addition,
        answer=answer,
        context=one("context", CONTEXT),
        options=options,
        reasoning=one("reasoning", REASONING),
        document=one("document", DOCUMENT),
        label=one("label", LABEL),
        id=_named(config.id, "id", known) if config.id else "",
        messages=messages,
        impossible=next((plain[name] for name in IMPOSSIBLE if name in plain), ""),
    )


def _options(plain: dict[str, str], known: list[str], config: ColumnsConfig) -> tuple[str, ...]:
    if config.options:
        named = (config.options,) if isinstance(config.options, str) else config.options
        return tuple(_named(name, "options", known) for name in named)
    for name in OPTIONS:
        if name in plain:
            return (plain[name],)
    marks: dict[str, dict[str, str]] = {}
    for name, column in plain.items():
        if match := OPTION.match(name):
            marks.setdefault(name[: match.start(1)], {})[match[1]] = column
    for prefix, found in marks.items():
        start = next((mark for mark in OPTION_STARTS if mark in found), None)
        if start is None or (not prefix and start.isdigit()):
            continue
        columns: list[str] = []
        mark = start
        while mark in found:
            columns.append(found[mark])
            mark = str(int(mark) + 1) if mark.isdigit() else chr(ord(mark) + 1)
        if len(columns) > 1:
            return tuple(columns)
    return ()


def _named(name: str, field: str, known: list[str]) -> str:
    if name in known:
        return name
    close = get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise UnusableError(
        "wrong_columns",
        f"there is no column {name!r}{hint}, which ingest.rows.columns.{field} names; the columns "
        f"are {_listed(known)}",
    )


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name[:40]) for name in names[:20])
    return shown + (f" and {len(names) - 20} more" if len(names) > 20 else "")
