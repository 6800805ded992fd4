"""Each ONNX file on the test rows, as it will be used: its answers, its speed, its memory.

In: the files, the folder that they stand for, rows. Out: the figures of export.json. Each file
answers in a process of its own (`worker.py`), so that its memory is its own. Knows nothing of how
the files were made.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill.core.scoring import bootstrap, exact_match, paired_bootstrap, token_f1
from potstill.errors import ModelError
from potstill.export.extractive.config import SpanExportConfig
from potstill.models.spans.reader import SpanReader
from potstill.models.spans.rows import SpanRow


def measured(
    config: SpanExportConfig,
    files: Mapping[str, Path],
    folder: Path,
    rows: Sequence[SpanRow],
    parameters: int,
    seed: int,
    threads: int,
) -> dict[str, dict[str, Any]]:
    """Of each file its figures, on the same rows as the PyTorch student, whom it is compared with.

    Errors: ModelError for a file that ONNX Runtime cannot run.
    """
    pairs = [(row.question, row.passage) for row in rows]
    before = [
        _f1(answer.answer, row)
        for answer, row in zip(SpanReader(folder).answers(pairs), rows, strict=True)
    ]
    found = {}
    for kind, file in files.items():
        said = _answered(folder, file, pairs, config.speed_rounds, threads)
        answers = said.pop("answers")
        f1 = [_f1(answer, row) for answer, row in zip(answers, rows, strict=True)]
        em = [_em(answer, row) for answer, row in zip(answers, rows, strict=True)]
        change = paired_bootstrap(f1, before, seed, config.resamples, config.level)
        found[f"onnx-{kind}"] = {
            "file": file.name,
            "parameters": parameters,
            "disk_bytes": file.stat().st_size,
            **said,
            "empty_answers": sum(not answer for answer in answers),
            "f1_difference": change.as_dict(),
            "metrics": {
                "f1": bootstrap(f1, seed, config.resamples, config.level).as_dict(),
                "em": bootstrap(em, seed, config.resamples, config.level).as_dict(),
            },
        }
    return found


def recommended(models: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    """The file to take, and why."""
    good = [key for key, model in models.items() if not model["f1_difference"]["high"] < 0]
    if not good:
        best = max(models, key=lambda key: float(models[key]["metrics"]["f1"]["value"]))
        return best, "the one that answers best; every file is proven to answer worse than PyTorch"
    best = min(good, key=lambda key: int(models[key]["disk_bytes"]))
    return best, "the smallest that is not proven to answer worse than the PyTorch student"


def _answered(
    folder: Path, file: Path, pairs: Sequence[tuple[str, str]], rounds: int, threads: int
) -> dict[str, Any]:
    job = {
        "folder": str(folder),
        "file": str(file),
        "pairs": [list(pair) for pair in pairs],
        "rounds": rounds,
        "threads": threads,
    }
    done = subprocess.run(
        [sys.executable, "-m", "potstill.export.extractive.worker"],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"]
        raise ModelError(f"{file.name} cannot be read by ONNX Runtime: {lines[-1][:300]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _golds(row: SpanRow) -> tuple[str, ...]:
    texts = row.example.answers or (row.example.turns[-1].content,)
    return tuple(one for one in texts if one.strip())


def _f1(answer: str, row: SpanRow) -> float:
    """SQuAD v2.0's: where there is no answer, none is the right one."""
    return float(not answer) if row.start is None else token_f1(answer, _golds(row))


def _em(answer: str, row: SpanRow) -> float:
    return float(not answer) if row.start is None else exact_match(answer, _golds(row))
