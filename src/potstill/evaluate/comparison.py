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
MARKED = {"marked_kl": "KL", "same_span": "same span %", "f1": "F1 %", "em": "EM %"}
"""Where the student marks answers."""
SIZES = ("parameters", "disk", "memory")
WAITS = {"first token": "time_to_first_token_s"}
RATES = {"tok/s": "tokens_per_second", "batched": "several"}
MARKED_WAITS = {"an answer": "answer_s", "95% within": "answer_p95_s"}
MARKED_RATES = {"questions/s": "questions_per_second"}
WIDTH = 100
Rows = list[list[str]]
Model = Mapping[str, Any]


def quality(report: Mapping[str, Any]) -> Rows:
    """Header and one row a model: how near to the teacher, and how right."""
    shown = MARKED if words.marks_spans(report) else APART if apart(report) else QUALITY
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

    Of exported files that one is compared which the export recommends. Batched: the most requests
    at once that were timed.
    """
    models = {name: _speeds(model) for name, model in report["models"].items()}
    marks = words.marks_spans(report)
    waits, rates = (MARKED_WAITS, MARKED_RATES) if marks else (WAITS, RATES)
    rows = [["model", *SIZES, *waits, *rates]]
    rows += [
        [
            words.model_name(name),
            words.millions(model.get("parameters")),
            words.size(words.disk_bytes(model)),
            words.size(model.get("peak_memory_bytes")),
            *(words.duration(model.get(field)) for field in waits.values()),
            *(words.number(model.get(field)) for field in rates.values()),
        ]
        for name, model in models.items()
    ]
    teacher = models.get("teacher")
    best = str((report.get("recommended") or {}).get("model"))
    for name in dict.fromkeys(["distilled", best]):
        if teacher and name in models:
            title = f"{words.model_name(name)} / Teacher"
            ours = models[name]
            shares = [
                _share(ours.get("parameters"), teacher.get("parameters")),
                _share(words.disk_bytes(ours), words.disk_bytes(teacher)),
                _share(ours.get("peak_memory_bytes"), teacher.get("peak_memory_bytes")),
                *(_share(ours.get(one), teacher.get(one)) for one in waits.values()),
            ]
            factors = [_factor(ours.get(one), teacher.get(one)) for one in rates.values()]
            rows.append([title, *shares, *factors])
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


def _speeds(model: Model) -> Model:
    """The model with the rate of the most requests at once that were timed, as `several`."""
    found = model.get("parallel_tokens_per_second") or {}
    return {**model, "several": found[max(found, key=int)] if found else None}


def _share(ours: float | None, theirs: float | None) -> str:
    """Nothing where one of the two was not measured."""
    return f"{100 * ours / theirs:.0f}%" if ours and theirs else words.MISSING


def _factor(ours: float | None, theirs: float | None) -> str:
    """The same as a factor."""
    return f"{ours / theirs:.2f}x" if ours and theirs else words.MISSING


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
