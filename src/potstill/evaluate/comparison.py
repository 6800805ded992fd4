"""Teacher and student side by side as plain text: size, speed, quality, and what they answer.

In: the report's dictionary. Out: rows of cells for a terminal, and the text of `report.txt`.
Measures nothing and draws nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from potstill.evaluate import words

QUALITY = {
    "kl": "KL",
    "agreement": "agreement %",
    "perplexity": "perplexity",
    "f1": "F1 %",
    "em": "EM %",
}
APART = {
    "span_kl": "span KL",
    "agreement": "agreement %",
    "bits_per_byte": "bits/byte",
    "f1": "F1 %",
    "em": "EM %",
}
"""Where student and teacher have different tokenizers."""
SIZES = ("parameters", "disk", "memory", "first token", "tok/s", "tok/s, several")
WIDTH = 100
Rows = list[list[str]]


def quality(report: Mapping[str, Any]) -> Rows:
    """Header and one row a model: how near to the teacher, and how right."""
    shown = APART if apart(report) else QUALITY
    rows = [["model", *shown.values()]]
    for name, model in report["models"].items():
        metrics = model.get("metrics") or {}
        cells = [
            words.figure(one, metrics[one]["value"]) if one in metrics else words.MISSING
            for one in shown
        ]
        rows.append([words.model_name(name), *cells])
    return rows


def sizes(report: Mapping[str, Any]) -> Rows:
    """Header, one row a model, and what the student's are of the teacher's.

    Of exported files that one is compared which the export recommends. Several: the most requests
    at once that were timed.
    """
    models = report["models"]
    rows = [["model", *SIZES]]
    rows += [
        [
            words.model_name(name),
            words.millions(model.get("parameters")),
            words.size(words.disk_bytes(model)),
            words.size(model.get("peak_memory_bytes")),
            words.duration(model.get("time_to_first_token_s")),
            words.number(model.get("tokens_per_second")),
            words.number(_several(model)),
        ]
        for name, model in models.items()
    ]
    teacher = models.get("teacher") or {}
    best = str((report.get("recommended") or {}).get("model"))
    for name in dict.fromkeys(["distilled", best]):
        if name in models and teacher:
            title = f"{words.model_name(name)} / Teacher"
            rows.append([title, *_shares(models[name], teacher)])
    return rows


def apart(report: Mapping[str, Any]) -> bool:
    """Whether student and teacher have different tokenizers."""
    teacher = report["models"].get("teacher") or {}
    return "span_kl" in (teacher.get("metrics") or {})


def text(report: Mapping[str, Any]) -> str:
    """report.txt: the verdict, both tables, and the sampled rows with every model's answer."""
    lines = [str(report["run"]), "=" * len(str(report["run"])), ""]
    lines += [f"- {sentence}" for sentence in report["verdict"]["made"]]
    for claim in [*report["verdict"]["claims"], *report["verdict"]["open"]]:
        lines += [f"- {claim['text']}", *(f"    {figure}" for figure in claim["figures"])]
    lines += ["", *_aligned(quality(report)), "", *_aligned(sizes(report))]
    if report["samples"]:
        lines += ["", "Side by side", "------------"]
    for sample in report["samples"]:
        answers = [["right", " / ".join(sample["golds"])]]
        answers += [
            [words.model_name(name), one["answer"]] for name, one in sample["answers"].items()
        ]
        lines += ["", f"? {_line(sample['question'])}"]
        width = max(len(name) for name, _ in answers)
        lines += [f"  {name:<{width}}  {_line(answer)}" for name, answer in answers]
    lines += ["", *(f"Note: {note}" for note in report["notes"])]
    return "\n".join(lines) + "\n"


def _several(model: Mapping[str, Any]) -> float | None:
    found = model.get("parallel_tokens_per_second") or {}
    return found[max(found, key=int)] if found else None


def _shares(model: Mapping[str, Any], teacher: Mapping[str, Any]) -> list[str]:
    """Sizes as a share, speeds as a factor; nothing where one of the two was not measured."""

    def share(ours: float | None, theirs: float | None) -> str:
        return f"{100 * ours / theirs:.0f}%" if ours and theirs else words.MISSING

    def factor(ours: float | None, theirs: float | None) -> str:
        return f"{ours / theirs:.2f}x" if ours and theirs else words.MISSING

    return [
        share(model.get("parameters"), teacher.get("parameters")),
        share(words.disk_bytes(model), words.disk_bytes(teacher)),
        share(model.get("peak_memory_bytes"), teacher.get("peak_memory_bytes")),
        share(model.get("time_to_first_token_s"), teacher.get("time_to_first_token_s")),
        factor(model.get("tokens_per_second"), teacher.get("tokens_per_second")),
        factor(_several(model), _several(teacher)),
    ]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The first column to the left, the others to the right."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return [
        "  ".join(
            f"{cell:>{width}}" if place else f"{cell:<{width}}"
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _line(words_said: str | None) -> str:
    """One line of at most `WIDTH` characters."""
    whole = " ".join((words_said or "").split()) or "(nothing)"
    return whole if len(whole) <= WIDTH else f"{whole[: WIDTH - 1]}…"
