"""What is done with a finished run's answers: scored again, and judged.

In: the run's folder with its predictions, its test rows. Out: figures, and files below the run's
folder, each written whole or not at all. No model is started but a judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from potstill.core.files import read_records, write_json, write_records
from potstill.core.refusals import REFUSAL
from potstill.errors import InputError
from potstill.evaluate.answer_scores import gold_of, passage_of
from potstill.evaluate.judge import RUBRIC, Case, judge_grades, judge_pairs
from potstill.evaluate.predictions import read_predictions, score_answers
from potstill.evaluate.results import Resampling
from potstill.inference.base import TextModel
from potstill.records import Example


def score_run(
    predictions: Path,
    test: Path,
    resampling: Resampling | None = None,
    *,
    spans: bool = False,
) -> dict[str, Any]:
    """A run's stored answers against its test rows, as `predictions.score_file`.

    spans: the students mark answers, and give none where there is none: SQuAD v2.0's rules then.
    """
    said = read_predictions(predictions).answers
    kept = {name for answers in said.values() for name in answers}
    golds = {row.id: gold_of(row) for row in read_records(test, Example) if row.id in kept}
    if spans and any(one.kind == REFUSAL for one in golds.values()):
        golds = {
            name: replace(one, answers=() if one.kind == REFUSAL else one.answers, v2=True)
            for name, one in golds.items()
        }
    return score_answers(said, golds, resampling or Resampling(0), str(predictions))


def cases(
    predictions: Path, test: Path, models: Sequence[str], limit: int | None = None
) -> list[Case]:
    """The first test rows by id to which all those models have an answer.

    Errors: InputError for a model that answered none.
    """
    said = read_predictions(predictions).answers
    for model in models:
        if model not in said:
            raise InputError(
                f"{predictions} holds no answers of {model}.",
                f"It has those of {', '.join(sorted(said))}.",
            )
    rows = sorted(read_records(test, Example), key=lambda row: row.id)
    return [
        Case(
            row=row.id,
            question=row.question or row.turns[-2].content,
            answers={model: said[model][row.id] for model in models},
            golds=gold_of(row).answers,
            passage=passage_of(row) if row.question else "",
        )
        for row in rows
        if all(row.id in said[model] for model in models)
    ][:limit]


def judge_run(
    folder: Path,
    some: Sequence[Case],
    models: tuple[str, str],
    judge: TextModel,
    name: str,
    rubric: str | None = None,
) -> dict[str, Any]:
    """Judge a run's answers in pairs, or by a rubric; `judge/` of its folder holds what was said.

    rubric: grade each answer by it instead; "" takes the one that Potstill brings. Writes
    votes.jsonl or grades.jsonl, and judge.json. Errors: those of `judge.py`.
    """
    if rubric is None:
        votes, found = judge_pairs(some, models, judge, name)
        write_records(folder / "judge" / "votes.jsonl", votes)
    else:
        grades, found = judge_grades(some, models, judge, name, rubric or RUBRIC)
        write_records(folder / "judge" / "grades.jsonl", grades)
    write_json(folder / "judge" / "judge.json", found)
    return found
