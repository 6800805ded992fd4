"""Runs side by side: rank, fronts, paired rows, and the page in its four formats."""

from __future__ import annotations

import csv
import html.parser
import io
from typing import Any

import pytest

from potstill.errors import InputError
from potstill.evaluate import compare_page
from potstill.evaluate.compare import Compared, compare

NASTY = '<script>alert("x")</script>|'


def figure(value: float) -> dict[str, Any]:
    return {"value": value, "low": value * 0.9, "high": value * 1.1, "n": 8}


def model(f1: float, disk: int, speed: float, kl: float = 1.0) -> dict[str, Any]:
    metrics = {"f1": figure(f1), "em": figure(f1 / 2), "kl": figure(kl)}
    return {
        "parameters": disk // 4, "disk_bytes": disk, "tokens_per_second": speed,
        "peak_memory_bytes": 2 * disk, "metrics": metrics,
    }  # fmt: skip


def run(
    name: str, f1: list[float], disk: int = 1000, *, models: Any = None, **more: Any
) -> Compared:
    mean = sum(f1) / len(f1)
    report = {
        "models": models
        or {"teacher": model(0.9, 9000, 5.0, 0.0), "distilled": model(mean, disk, 50.0)},
        "recipe": {"teacher": "a-teacher"},
        "examples": {"evaluated": len(f1)},
        "machine": {"processor": "P", "cores": 2},
        "stages": {"evaluate": {"key": f"k{name}" * 9, "digest": "d" * 64}},
        **more,
    }
    rows = [
        {"id": f"r{n}", "model": "distilled", "kind": "qa", "answer": f"{name} {n}{NASTY}",
         "golds": [f"gold {n}"], "f1": value, "em": float(value == 1), "kl": 0.5}
        for n, value in enumerate(f1)
    ]  # fmt: skip
    other = [{**row, "model": "teacher", "f1": 1.0} for row in rows]
    return Compared(name, report, [*rows, *other])


FIRST = run("first", [1.0, 0.5, 0.5, 1.0, 0.0, 1.0, 0.5, 0.25], disk=2000)
SECOND = run("second", [0.0, 0.5, 0.25, 0.5, 0.0, 0.5, 0.25, 0.0], disk=1000)


def test_models_are_ranked_and_a_shared_teacher_is_there_once() -> None:
    found = compare([FIRST, SECOND])
    assert [entry["id"] for entry in found["entries"]] == [
        "first/teacher", "first/distilled", "second/distilled",
    ]  # fmt: skip
    by_kl = compare([FIRST, SECOND], by="kl")["entries"]
    assert by_kl[0]["id"] == "first/teacher"


def test_fronts_hold_what_no_other_model_beats_in_both() -> None:
    models = {
        "distilled": model(0.5, 1000, 50.0),
        "gguf-f16": model(0.5, 500, 80.0),  # as good, smaller and faster
        "gguf-q4_k_m": model(0.4, 100, 90.0),
        "gguf-q8_0": model(0.3, 300, 85.0),  # worse and larger than the one before
    }
    found = compare([run("a", [0.5, 0.5], models=models), SECOND])
    assert found["fronts"]["disk_bytes"] == ["a/gguf-q4_k_m", "a/gguf-f16", "second/teacher"]
    assert found["fronts"]["tokens_per_second"] == [
        "a/gguf-q4_k_m", "a/gguf-f16", "second/teacher",
    ]  # fmt: skip
    best = {entry["id"]: entry["on_front"] for entry in found["entries"]}
    assert best["a/gguf-f16"] == ["disk_bytes", "tokens_per_second"]
    assert best["a/distilled"] == []


def test_rows_are_paired_by_id_and_the_worst_come_first() -> None:
    (pair,) = compare([FIRST, SECOND])["pairs"]
    difference = pair["differences"]["f1"]
    assert difference["value"] == pytest.approx(-(1 + 0.25 + 0.5 + 0.5 + 0.25 + 0.25) / 8)
    assert difference["significant"] is True
    assert pair["counts"] == {"better": 0, "same": 2, "worse": 6}
    assert [one["id"] for one in pair["regressions"]][:3] == ["r0", "r3", "r5"]
    assert pair["regressions"][0]["before"]["f1"] == 1.0
    assert pair["power"]["f1"]["n"] == 8


def test_no_run_is_called_better_where_the_interval_holds_zero() -> None:
    other = run("other", [0.5, 1.0, 0.5, 1.0, 0.0, 1.0, 0.5, 0.25])
    found = compare([FIRST, other])
    assert found["pairs"][0]["differences"]["f1"]["significant"] is False
    page = compare_page.render(found)
    assert "not told apart" in page
    assert "first is better" not in page
    assert "other is better" not in page


def test_only_common_rows_are_paired_and_that_is_said() -> None:
    short = Compared("short", SECOND.report, [r for r in SECOND.predictions if r["id"] < "r3"])
    found = compare([FIRST, short])
    assert found["pairs"][0]["rows"] == 3
    assert "3 test rows in common, of 3 and 8" in found["notes"][0]
    alone = Compared("alone", SECOND.report, [])
    assert compare([FIRST, alone])["pairs"][0]["differences"] == {}
    elsewhere = run(
        "far", [0.5] * 8, machine={"processor": "Q", "cores": 9}, recipe={"teacher": "b"}
    )
    notes = " ".join(compare([FIRST, elsewhere])["notes"])
    assert "different machines" in notes
    assert "different teachers" in notes


@pytest.mark.parametrize(
    ("runs", "by", "message"),
    [
        ([FIRST], "f1", "at least two runs"),
        ([FIRST, FIRST], "f1", "one name"),
        ([FIRST, SECOND], "taste", "No model has the metric taste"),
        ([FIRST, SECOND], "rougeL", "Rank by one of f1, em, kl"),
    ],
)
def test_what_cannot_be_compared_is_one_clear_error(
    runs: list[Compared], by: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        compare(runs, by=by)


class Tags(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_page_is_self_contained_and_escapes_what_models_said() -> None:
    page = compare_page.render(compare([FIRST, SECOND]))
    tags = Tags()
    tags.feed(page)
    assert "script" not in tags.found
    assert tags.links == []
    assert tags.found.count("svg") >= 2
    assert "&lt;script&gt;" in page
    assert 'class="front"' in page


def test_markdown_and_csv_hold_the_same_figures() -> None:
    found = compare([FIRST, SECOND])
    text = compare_page.markdown(found)
    assert "| 2. first · Distilled | 59.4 (53.4 to 65.3) |" in text
    assert NASTY not in text
    rows = list(csv.DictReader(io.StringIO(compare_page.csv_text(found))))
    row = next(
        r for r in rows if (r["run"], r["model"], r["metric"]) == ("second", "distilled", "f1")
    )
    assert float(row["value"]) == 0.25
    assert (row["rank"], row["key"], row["unit"]) == ("3", "ksecond" * 9, "share")
    header, *_ = compare_page.board_table(found)
    assert header[:2] == ["run and model", "Answer F1"]
