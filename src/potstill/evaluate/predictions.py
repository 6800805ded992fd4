"""Stored answers scored again, without a model: any predictions file against any gold answers.

In: a file of predictions, a file of gold answers (or the gold answers that the predictions carry).
Out: the same figures, intervals and paired differences as the evaluate stage's. Loads no model.

Predictions are one of
    {"row id": "answer", ...}                                    SQuAD's own format
    JSON Lines, or a JSON list, of {"id", "answer", ...}         `answer`, `prediction`,
        `prediction_text` or `text`; with `model` where several are in one file; `golds` and `kind`
        where there is no other file, as predictions.jsonl has them
Gold answers are one of
    {"data": [{"paragraphs": [{"context", "qas": [...]}]}]}      SQuAD v1.1 or v2.0
    JSON Lines, or a JSON list, of examples of Potstill's, or of {"id", "question", "answers" or
        "answer" or "golds", "context"}; `answers` may be {"text": [...]} as on the Hugging Face hub
A row without a prediction counts as an empty answer, as in the official script, and is counted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from potstill.core.files import disk_errors, file_digest
from potstill.errors import InputError
from potstill.evaluate.answer_scores import Gold, gold_of, score_answer
from potstill.evaluate.metrics import PAIRS, ExampleScores
from potstill.evaluate.results import Resampling, compared, measured
from potstill.records import Example

ANSWER_FIELDS = ("answer", "prediction", "prediction_text", "text")
GOLD_FIELDS = ("answers", "golds", "answer")
ALONE = "predictions"
"""What a model is called that a file of one model does not name."""


@dataclass
class Predictions:
    """What models said: model -> row id -> answer; and the gold answers that came along."""

    answers: dict[str, dict[str, str]] = field(default_factory=dict)
    golds: dict[str, Gold] = field(default_factory=dict)


def score_file(
    predictions: Path, golds: Path | None = None, resampling: Resampling | None = None
) -> dict[str, Any]:
    """Score every model of a predictions file.

    Returns `models`, `differences`, `power` as in results.json, `examples` (rows, and of each model
    how many had no prediction), `files` (names and digests), `settings`.
    Errors: InputError for a file that is no such file, names its line; for ids that do not meet;
    for fewer than two rows; for a model all of whose answers are empty.
    """
    found = read_predictions(predictions)
    known = read_golds(golds) if golds is not None else found.golds
    if not known:
        raise InputError(
            f"{predictions} holds no gold answers to score against.",
            "Name a file that has them: --golds FILE.",
        )
    made = score_answers(found.answers, known, resampling or Resampling(0), str(predictions))
    files = [path for path in (predictions, golds) if path is not None]
    made["files"] = {str(path): file_digest(path) for path in files}
    return made


def score_answers(
    answers: Mapping[str, Mapping[str, str]],
    golds: Mapping[str, Gold],
    resampling: Resampling,
    source: str = "the predictions",
) -> dict[str, Any]:
    """As `score_file`, of answers that are in memory. Rows in the order of their ids."""
    rows = [golds[name] for name in sorted(golds)]
    missing, unknown = {}, {}
    scored: dict[str, list[ExampleScores]] = {}
    for model, said in answers.items():
        missing[model] = sum(row.id not in said for row in rows)
        unknown[model] = sum(name not in golds for name in said)
        if missing[model] == len(rows):
            raise InputError(
                f"None of the {len(said)} ids of {model} in {source} is that of a row with gold "
                "answers.",
                "Predictions and gold answers are matched by their ids.",
            )
        texts = [said.get(row.id, "") for row in rows]
        if not any(text.strip() for text in texts) and any(row.answers for row in rows):
            raise InputError(
                f"All {len(rows)} answers of {model} in {source} are empty: there is nothing to "
                "score.",
                "Look at what wrote them: a student that says nothing ends its turn at once.",
            )
        scored[model] = [
            ExampleScores(None, score_answer(text, row))
            for text, row in zip(texts, rows, strict=True)
        ]
    if len(rows) < 2:
        raise InputError(
            f"There is {len(rows)} row to score in {source}, and an interval needs at least two."
        )
    return {
        "models": measured([row.kind for row in rows], scored, resampling),
        **compared(scored, resampling, _pairs(list(scored))),
        "examples": {"evaluated": len(rows), "missing": missing, "unknown": unknown},
        "settings": {
            "seed": resampling.seed,
            "level": resampling.level,
            "resamples": resampling.resamples,
        },
    }


def read_predictions(path: Path) -> Predictions:
    """Read a predictions file. Errors: InputError names the file and the line."""
    found = Predictions()
    for where, row in _rows(path, "predictions"):
        text = next((row[name] for name in ANSWER_FIELDS if name in row), None)
        if "id" not in row or not isinstance(text, str):
            raise InputError(
                f"{where}: not a prediction; it needs an id and an answer.",
                'Such as {"id": "1", "answer": "42 turns"}, one a line.',
            )
        model, name = str(row.get("model") or ALONE), str(row["id"])
        said = found.answers.setdefault(model, {})
        if name in said:
            raise InputError(f"{where}: the row {name} has a second answer of {model}.")
        said[name] = text
        if isinstance(row.get("golds"), list):
            kind = str(row.get("kind") or "qa")
            found.golds.setdefault(name, Gold(name, tuple(map(str, row["golds"])), kind))
    if not found.answers:
        raise InputError(f"{path} holds no predictions.")
    return found


def read_golds(path: Path) -> dict[str, Gold]:
    """Read gold answers by row id. Errors: InputError names the file and the line."""
    found: dict[str, Gold] = {}
    for where, row in _rows(path, "gold answers"):
        gold = _gold(where, row)
        if gold.id in found:
            raise InputError(f"{where}: the row {gold.id} is there twice.")
        found[gold.id] = gold
    if not found:
        raise InputError(f"{path} holds no gold answers.")
    return found


def _gold(where: str, row: Mapping[str, Any]) -> Gold:
    if "turns" in row:
        try:
            return gold_of(Example.model_validate(row))
        except ValidationError as error:
            first = error.errors()[0]
            raise InputError(f"{where}: {first['loc']}: {first['msg']}.") from error
    value = next((row[name] for name in GOLD_FIELDS if name in row), None)
    if isinstance(value, Mapping):
        value = value.get("text")
    if isinstance(value, str):
        value = [value]
    if "id" not in row or not isinstance(value, list):
        raise InputError(
            f"{where}: no gold answer; a row needs an id and answers.",
            'Such as {"id": "1", "question": "How many?", "answers": ["42"]}, one a line.',
        )
    texts = [one["text"] if isinstance(one, Mapping) and "text" in one else one for one in value]
    return Gold(
        id=str(row["id"]),
        answers=tuple(str(text) for text in texts),
        kind=str(row.get("kind") or "qa"),
        question=str(row.get("question") or ""),
        passage=str(row.get("context") or ""),
        v2=bool(row.get("v2")) or "is_impossible" in row,
    )


def _rows(path: Path, what: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where it stands, row) of each row of a JSON or JSON Lines file."""
    try:
        with disk_errors(path, "read"):
            text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text.") from error
    try:
        whole = json.loads(text)
    except ValueError:
        yield from _lines(path, text)
        return
    if isinstance(whole, Mapping) and isinstance(whole.get("data"), list):
        yield from _squad(path, whole["data"])
    elif isinstance(whole, list):
        yield from ((f"{path}, row {n}", _object(path, n, row)) for n, row in enumerate(whole, 1))
    elif isinstance(whole, Mapping) and "id" in whole:
        yield f"{path}, line 1", dict(whole)
    elif isinstance(whole, Mapping) and all(isinstance(one, str) for one in whole.values()):
        yield from ((f"{path}, {name}", {"id": name, "answer": a}) for name, a in whole.items())
    else:
        raise InputError(f"{path} is not a file of {what}.", "See `potstill eval --help`.")


def _lines(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise InputError(f"{path}, line {number}: not valid JSON: {error}.") from error
            yield f"{path}, line {number}", _object(path, number, row)


def _object(path: Path, number: int, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise InputError(f"{path}, row {number}: not an object with fields.")
    return row


def _squad(path: Path, articles: Sequence[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The questions of a SQuAD file; v2.0 if one of them says whether it can be answered."""
    try:
        pairs = [
            (paragraph.get("context", ""), question)
            for article in articles
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
        v2 = any("is_impossible" in question for _, question in pairs)
        for context, question in pairs:
            answers = [one["text"] for one in question.get("answers", [])]
            row = {"question": question.get("question"), "answers": answers, "context": context}
            yield f"{path}, {question['id']}", {"id": question["id"], "v2": v2, **row}
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a SQuAD file: {error!r} is missing or wrong.") from error


def _pairs(models: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs of a run where these are its models; else the first against each other one."""
    known = [pair for pair in PAIRS if set(pair) <= set(models)]
    return known or [(models[0], other) for other in models[1:]]
