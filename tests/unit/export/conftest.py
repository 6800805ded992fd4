"""One finished export of a tiny student, made once, that the tests look at and damage copies of."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from potstill.core.events import Emitter
from potstill.core.stage import Artifact, Context, Draft
from potstill.export.config import ExportConfig
from potstill.records import Example, Provenance, Turn

QUESTIONS = ("How many litres?", "What does the keeper note?", "When? At 08:45 or 9?", "Which?")
METRIC = {"value": 1.0, "low": 0.5, "high": 1.5, "n": 4}
RESULTS_MODEL = {
    "parameters": 100_000,
    "disk_bytes": 200_000,
    "peak_memory_bytes": 3_000_000,
    "tokens_per_second": 100.0,
    "time_to_first_token_s": 0.01,
    "metrics": dict.fromkeys(("kl", "agreement", "perplexity", "f1", "em"), METRIC),
}


class Exporting:
    """Everything a call of the stage needs, in one folder."""

    def __init__(self, folder: Path, student: Path, teacher: Path) -> None:
        self.folder = folder
        self.config = ExportConfig(
            teacher=str(teacher),
            quantisations=("q4_k_m",),
            answer_tokens=6,
            speed_rounds=1,
            speed_tokens=4,
            resamples=100,
            quantised_max_kl=2.0,
            quantised_min_agreement=0.4,
        )
        self.draft = Draft(folder / "draft")
        self.draft.data.mkdir(parents=True)
        self.draft.work.mkdir()
        self.context = Context(
            folder, folder / "cache", 17, 1, Emitter(folder / "events", "export")
        )
        examples = [_example(index, question) for index, question in enumerate(QUESTIONS)]
        self.inputs = {}
        for stage in ("curate", "correct", "distill", "evaluate"):
            (folder / stage / "data").mkdir(parents=True)
            self.inputs[stage] = Artifact(stage, "key", folder / stage, "digest")
        lines = "".join(example.model_dump_json() + "\n" for example in examples)
        for name in ("train.jsonl", "test.jsonl"):
            self.inputs["curate"].path(name).write_text(lines)
        self.inputs["distill"].path("models").mkdir()
        self.inputs["distill"].path("models/distilled").symlink_to(student)
        names = ("teacher", "undistilled", "finetuned", "distilled")
        results = {"models": dict.fromkeys(names, RESULTS_MODEL)}
        self.inputs["evaluate"].path("results.json").write_text(json.dumps(results))


def _example(index: int, question: str) -> Example:
    passage = "The boiler of unit 7 holds 1250 litres. The keeper notes the time in the log."
    return Example(
        id=f"row-{index}",
        turns=(
            Turn(role="user", content=f"{passage}\n\n{question}"),
            Turn(role="assistant", content="1250 litres"),
        ),
        question=question,
        answers=("1250 litres",),
        provenance=Provenance(document="d", chunk="c"),
    )


@pytest.fixture(scope="session")
def exporting(
    tmp_path_factory: pytest.TempPathFactory,
    make_student: Callable[..., Path],
    tiny_folder: Path,
    tiny_ggufs: dict[str, Path],
) -> Exporting:
    """Goes on from a killed run that had already converted the student."""
    from potstill.export.run import run

    folder = tmp_path_factory.mktemp("export")
    exporting = Exporting(folder, tiny_folder, make_student(folder / "teacher", seed=2))
    shutil.copy(tiny_ggufs["f16"], exporting.draft.data / "student-f16.gguf")
    (exporting.draft.data / ".student-q4_k_m.gguf.part").write_bytes(b"half a file")
    run(exporting.config, exporting.inputs, exporting.draft, exporting.context)
    return exporting
