"""`potstill eval --suite`: a run's teacher and student on questions from outside.

In: a run, a task of lm-eval or a file of questions. Out: figures, kept in `suites/` of the run's
folder. Heavy packages are imported when a suite is run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.cli_options import err
from potstill.errors import InputError, UsageError
from potstill.pipeline import Run, open_run

if TYPE_CHECKING:
    from potstill.evaluate.answer_scores import Gold

ASKED = ("teacher", "distilled")


def run_task(
    run_name: str, suite: str, limit: int | None, threads: int | None, project: Path | None
) -> dict[str, Any]:
    """A task of lm-eval. Errors: UsageError, MissingExtraError, those of `suite.run_suite`."""
    from potstill.core.extras import check_installed
    from potstill.core.files import write_json
    from potstill.core.machine import usable_cores
    from potstill.evaluate.suite import parse_suite, run_suite

    task = parse_suite(suite)
    this = open_run(run_name, project)
    if this.task == "spans":
        raise UsageError(
            f"The student of {this.folder.name} marks answers in passages, and no task of lm-eval "
            "asks for that.",
            "Name a file of questions with their passages, such as a SQuAD file.",
        )
    check_installed("lm_eval", "The suite lm-eval")
    import torch

    torch.set_num_threads(threads or usable_cores())
    found = run_suite(task, _models(this), limit=limit)
    write_json(this.folder / "suites" / f"{task}.json", found)
    return found


def run_file(
    run_name: str, file: Path, limit: int | None, threads: int | None, project: Path | None
) -> dict[str, Any]:
    """The questions of a file, put as the run's own rows are; answers are kept beside the figures.

    Errors: InputError for a file without questions.
    """
    import torch

    from potstill.core.files import file_digest, write_atomic, write_json
    from potstill.core.machine import usable_cores
    from potstill.evaluate import EvaluateConfig
    from potstill.evaluate.outside import answer_rows
    from potstill.evaluate.predictions import read_golds, score_answers
    from potstill.evaluate.results import Resampling
    from potstill.generate import PromptConfig, student_turn

    rows = list(read_golds(file).values())[:limit]
    if len(rows) < 2:
        raise InputError(f"{file} holds {len(rows)} question, and an interval needs at least two.")
    this = open_run(run_name, project)
    recipe = this.record["recipe"]
    if this.task == "spans":
        torch.set_num_threads(threads or usable_cores())
        found = _marked(this, rows, file)
        write_json(this.folder / "suites" / f"{file.stem}.json", found)
        return found
    prompt = PromptConfig.model_validate(recipe["generate"]["prompt"])
    config = EvaluateConfig.model_validate(recipe["evaluate"])
    torch.set_num_threads(threads or usable_cores())
    with err().status(f"{len(rows)} questions of {file.name}") as status:
        answered = answer_rows(
            rows,
            lambda row: student_turn(prompt, row.passage, row.question),
            _models(this),
            config,
            lambda model, done: status.update(f"{model}: {done} of {len(rows)} questions"),
        )
    golds = {row.id: row for row in rows if row.id not in answered.too_long}
    resampling = Resampling(recipe["seed"], config.resamples, config.level)
    found = score_answers(answered.answers, golds, resampling, file.name)
    found["examples"]["too_long"] = len(answered.too_long)
    found["files"] = {file.name: file_digest(file)}
    folder = this.folder / "suites"
    lines = [
        json.dumps({"id": name, "model": model, "answer": text}, ensure_ascii=False)
        for model, said in answered.answers.items()
        for name, text in said.items()
    ]
    write_atomic(folder / f"{file.stem}.predictions.jsonl", "\n".join(lines) + "\n")
    write_json(folder / f"{file.stem}.json", found)
    return found


def _marked(this: Run, rows: Sequence[Gold], file: Path) -> dict[str, Any]:
    """The figures of a student that marks answers on rows with passages. Errors: InputError."""
    from potstill.core.files import file_digest
    from potstill.evaluate.predictions import score_answers
    from potstill.evaluate.results import Resampling
    from potstill.models.spans.reader import SpanReader

    without = [row.id for row in rows if not row.passage]
    if without:
        raise InputError(
            f"{file}: {len(without)} of {len(rows)} questions have no passage to mark.",
            "Each row needs a context, as in a SQuAD file.",
        )
    this.artifact("export")  # an unfinished run is one clear line
    reader = SpanReader(this.folder / "export" / "safetensors")
    answers = reader.answers([(row.question, row.passage) for row in rows])
    said = {row.id: one.answer for row, one in zip(rows, answers, strict=True)}
    settings = this.record["recipe"]["evaluate"]
    resampling = Resampling(this.record["seed"], settings["resamples"], settings["level"])
    found = score_answers({"distilled": said}, {row.id: row for row in rows}, resampling, file.name)
    found["examples"]["too_long"] = 0
    found["files"] = {file.name: file_digest(file)}
    return found


def _models(this: Run) -> Mapping[str, Path]:
    """Folders of the run's teacher and distilled student."""
    from potstill.evaluate.sources import models_of

    recipe = this.record["recipe"]
    sources = models_of(
        recipe["evaluate"]["teacher"] or recipe["teacher"],
        this.artifact("correct"),
        this.artifact("distill"),
    )
    return {one.name: one.folder for one in sources if one.name in ASKED}
