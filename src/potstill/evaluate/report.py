"""The report of a whole run: JSON, CSV, HTML, Markdown and plain text of the same.

In: the data folders of the finished stages, what the runner knows of them, recipe and machine.
Out: report.json, .html, .md, .txt and .csv in the run's folder, each written atomically, and the
same as a dictionary.
Measures nothing and starts no model: every figure was measured by a stage.

report.json holds `run`, `models` (evaluate's and each exported file's; `exported` names those),
`differences`, `power`, `contamination`, `data` (kept and rejected by reason), `stages` (with each
one's key and digest), `machine`, `recipe`, `history`, `training`, `surgery`, `correction`,
`parity`, `chain`, `recommended`, `samples`, `notes`, `verdict`, `model_index` (the distilled
student's, for a Hugging Face model card). What a stage did not leave is empty, never invented.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from potstill.core.files import count_lines, read_json, read_records, write_atomic, write_json
from potstill.evaluate import comparison, formats, words
from potstill.records import Example

SAMPLES = 6
STAGES = ("ingest", "generate", "curate", "correct", "distill", "evaluate", "export")
KEPT_FILES = {
    "ingest": {"documents": "documents.jsonl", "chunks": "chunks.jsonl"},
    "generate": {"examples": "examples.jsonl"},
    "curate": {"train": "train.jsonl", "validation": "validation.jsonl", "test": "test.jsonl"},
}


def build_report(
    run_folder: Path,
    artifacts: Mapping[str, Path],
    stages: Mapping[str, Mapping[str, Any]],
    recipe: Mapping[str, Any],
    machine: Mapping[str, Any],
) -> dict[str, Any]:
    """Write the report's five files below `run_folder` and return report.json's content.

    artifacts: stage name -> its data folder. stages: stage name -> {seconds,
    peak_memory_bytes, reused, ...}. Errors: StoreError for a damaged file or a disk that
    refuses; FileNotFoundError never: only results.json must be there.
    """
    from potstill.evaluate.page import render

    results = read_json(artifacts["evaluate"] / "results.json")
    export = _optional(artifacts, "export", "export.json")
    training = _optional(artifacts, "distill", "training.json")
    correction = _optional(artifacts, "correct", "correction.json")
    report: dict[str, Any] = {
        "run": str(recipe.get("name") or run_folder.name),
        "task": results.get("task", "text"),
        "models": {**results["models"], **export.get("models", {})},
        "exported": list(export.get("models", {})),
        "differences": results["differences"],
        "power": results.get("power", {}),
        "contamination": results.get("contamination", {}),
        "examples": results.get("examples", {}),
        "settings": results.get("settings", {}),
        "data": _data(artifacts),
        "stages": {
            name: dict(stages[name])
            for name in STAGES
            if name in stages and (correction or name != "correct")  # nothing if it is off
        },
        "machine": {**machine, **results.get("machine", {})},
        "recipe": dict(recipe),
        "history": _optional(artifacts, "distill", "history.json"),
        "training": training,
        "surgery": _optional(artifacts, "distill", "surgery.json"),
        "correction": correction,
        "parity": export.get("parity", []),
        "chain": export.get("chain", []),
        "recommended": export.get("recommended"),
        "samples": _samples(artifacts),
    }
    report["notes"] = [*_own_notes(report), *map(str, export.get("notes", []))]
    report["verdict"] = words.verdict(report)
    report["model_index"] = formats.model_index(report, "distilled")
    write_json(run_folder / "report.json", report)
    write_atomic(run_folder / "report.md", formats.markdown(report))
    write_atomic(run_folder / "report.txt", comparison.text(report))
    write_atomic(run_folder / "report.csv", formats.csv_text(report))
    write_atomic(run_folder / "report.html", render(report))
    return report


def _optional(artifacts: Mapping[str, Path], stage: str, name: str) -> dict[str, Any]:
    """A JSON object that a stage may have left; empty if it did not."""
    folder = artifacts.get(stage)
    if folder is None or not (folder / name).exists():
        return {}
    value = read_json(folder / name)
    return value if isinstance(value, dict) else {}


def _data(artifacts: Mapping[str, Path]) -> dict[str, dict[str, dict[str, int]]]:
    """Stage -> {"kept": {what: count}, "rejected": {reason: count}}, most frequent first."""
    found = {}
    for stage in ("ingest", "generate", "curate", "distill", "evaluate"):
        folder = artifacts.get(stage)
        if folder is None or (stage == "distill" and not _reasons(folder / "rejected.jsonl")):
            continue
        if stage == "evaluate":
            results = read_json(folder / "results.json")
            kept = {"examples": int(results.get("examples", {}).get("evaluated", 0))}
        else:
            kept = {
                what: count_lines(folder / name)
                for what, name in KEPT_FILES.get(stage, {}).items()
                if (folder / name).exists()
            }
        reasons = Counter(_reasons(folder / "rejected.jsonl"))
        ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
        found[stage] = {"kept": kept, "rejected": dict(ordered)}
    return found


def _reasons(path: Path) -> list[str]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        return [str(json.loads(line)["reason"]) for line in file if line.strip()]


def _samples(artifacts: Mapping[str, Path]) -> list[dict[str, Any]]:
    """The first test examples by id, one a passage before a second of any: not chosen by score."""
    said: dict[str, dict[str, Any]] = {}
    with (artifacts["evaluate"] / "predictions.jsonl").open(encoding="utf-8") as file:
        for line in filter(str.strip, file):
            row = json.loads(line)
            said.setdefault(row["id"], {})[row["model"]] = {
                key: row.get(key)
                for key in ("answer", "f1", "em", "kl", "span_kl", "marked_kl", "finished")
            }
    test_file = artifacts["curate"] / "test.jsonl" if "curate" in artifacts else None
    if test_file is None or not test_file.exists():
        return []
    examples = sorted(
        (example for example in read_records(test_file, Example) if example.id in said),
        key=lambda example: example.id,
    )
    seen: Counter[str] = Counter()
    ranked = []
    for example in examples:
        ranked.append((seen[example.provenance.chunk], example.id, example))
        seen[example.provenance.chunk] += 1
    ranked.sort(key=lambda entry: entry[:2])
    return [
        {
            "id": example.id,
            "question": example.question or example.turns[-2].content,
            "prompt": [turn.model_dump() for turn in example.turns[:-1]],
            "golds": list(example.answers or (example.turns[-1].content,)),
            "answers": said[example.id],
        }
        for _, _, example in islice(ranked, SAMPLES)
    ]


def _own_notes(report: Mapping[str, Any]) -> list[str]:
    """What a careful reader must know before trusting the figures."""
    notes = []
    examples = report["examples"]
    evaluated = examples.get("evaluated")
    if evaluated:
        level = 100 * report["settings"].get("level", 0.95)
        notes.append(
            f"All quality figures are of the same {evaluated} held-out examples{_fewer(report)}. "
            f"Intervals are {level:g}% bootstrap intervals over examples; with few examples they "
            "are wide."
        )
    if report["recipe"].get("curate", {}).get("prepared"):
        notes.append(
            "Undistilled is the student that served before: this training began with it, on rows "
            "from feedback and a replay of old ones."
        )
    if examples.get("too_long"):
        notes.append(f"{examples['too_long']} test examples were too long and were left out.")
    audit = report["contamination"]
    if audit.get("seen"):
        notes.append(
            f"{audit['seen']} of {audit['rows']} test rows stand for the most part in the training "
            "rows: see the contamination audit."
        )
    small = _smallest_seen(report)
    if small is not None:
        notes.append(
            f"These test rows show a true difference in F1 of {100 * small:.1f} points four times "
            "of five; a smaller one may well go unseen."
        )
    silent = [
        words.model_name(name)
        for name, model in report["models"].items()
        if evaluated and model.get("empty_answers") == evaluated
    ]
    if silent:
        why = "it marks none" if words.marks_spans(report) else "it ends its turn at once"
        notes.append(f"Every answer of {', '.join(silent)} is empty: {why}.")
    cut = {
        words.model_name(name): model["unfinished_answers"]
        for name, model in report["models"].items()
        if model.get("unfinished_answers")
    }
    if cut:
        listed = ", ".join(f"{name} {number}" for name, number in cut.items())
        notes.append(f"Answers that reached the length limit without an end: {listed}.")
    correction = report["correction"]
    if correction and not correction["kept"]:
        before, after = (words.number(correction[f"loss_{when}"]) for when in ("before", "after"))
        notes.append(
            "The teacher's correction did not make it better on held-out rows (cross-entropy "
            f"{before} before, {after} after), so it was used as it came."
        )
    teacher = report["models"].get("teacher", {})
    if teacher.get("reference_disk_bytes"):
        notes.append(
            f"The teacher's disk size is that of its own file; unpacked for PyTorch it takes "
            f"{words.size(teacher['disk_bytes'])}."
        )
    if comparison.apart(report):
        notes.append(
            "Student and teacher have different tokenizers. Span KL compares how likely each takes "
            "the pieces of text between common token boundaries; agreement is over those "
            "boundaries; bits a byte count the same bytes for every model; tokens a second count "
            "each model's own tokens."
        )
    if words.marks_spans(report):
        notes.append(
            "Speed is of one question after the other on this machine, median of rounds taken in "
            "turn: questions a second of all, seconds of half. PyTorch and ONNX Runtime rows "
            "differ in engine as well as in the model."
        )
        return notes
    notes.append(
        "Speed is one user's on this machine, greedy, median of rounds taken in turn. PyTorch and "
        "llama.cpp rows differ in engine and number format as well as in the model."
    )
    return notes


def _smallest_seen(report: Mapping[str, Any]) -> float | None:
    """The difference in F1 between the students that the test rows can show."""
    pair = report["power"].get("distilled_minus_undistilled") or {}
    return pair["f1"]["smallest"] if "f1" in pair else None


def _fewer(report: Mapping[str, Any]) -> str:
    """Which models were measured on fewer examples than the others, in words; empty if none."""
    evaluated = report["examples"]["evaluated"]
    counts = {
        # Not every metric is of every model, and answers are scored only where there is a gold one.
        words.model_name(name): max(int(one["n"]) for one in model["metrics"].values())
        for name, model in report["models"].items()
        if model.get("metrics")
    }
    fewer = [f"{name} {count}" for name, count in counts.items() if count < evaluated]
    return f", of which {', '.join(fewer)} (export.max_examples)" if fewer else ""
