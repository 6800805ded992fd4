"""The report in its other formats: tables by kind and position, CSV, Markdown, the model card."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from potstill.evaluate import details, formats, words
from potstill.evaluate.page import render


def figure(value: float) -> dict[str, Any]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 40}


def model(f1: float, **more: Any) -> dict[str, Any]:
    metrics = {"f1": figure(f1), "kl": figure(1.0), "refusal_rate": figure(0.2)}
    return {"parameters": 1_000_000, "disk_bytes": 4_000_000, "metrics": metrics, **more}


@pytest.fixture
def report() -> dict[str, Any]:
    difference = {"value": 0.2, "low": 0.1, "high": 0.3, "n": 40, "significant": True}
    bins = [
        {"first": 1, "last": 1, "tokens": 40, "kl": 0.5, "agreement": 0.9},
        {"first": 33, "last": None, "tokens": 7, "kl": 0.1, "agreement": 1.0},
    ]
    kinds = {"qa": {"f1": figure(0.5)}, "refusal": {"f1": figure(0.7)}}
    needed = {"0.01": 12_559, "0.02": 3140, "0.05": 503, "measured": None}
    made: dict[str, Any] = {
        "run": "a | b",
        "models": {
            "teacher": model(0.9),
            "undistilled": model(0.4),
            "distilled": model(0.6, by_kind=kinds, by_position=bins),
            "gguf-f16": model(0.6),
        },
        "exported": ["gguf-f16"],
        "differences": {
            "distilled_minus_undistilled": {"f1": difference, "refusal_rate": difference}
        },
        "power": {
            "distilled_minus_undistilled": {
                "f1": {"n": 40, "spread": 0.4, "smallest": 0.177, "rows": needed}
            }
        },
        "contamination": {
            "rows": 40, "words": 8, "high": 0.8, "seen": 1, "untouched": 30, "mean_asked": None,
            "mean_text": 0.05, "most": [], "without": {"distilled": {"f1": figure(0.58)}},
        },
        "examples": {"evaluated": 40},
        "settings": {"level": 0.95},
        "data": {}, "machine": {}, "recipe": {}, "history": {}, "parity": [], "samples": [],
        "notes": ["<b>a note</b>"],
        "stages": {
            "curate": {"seconds": 1.0, "key": "c" * 64, "digest": "1" * 64},
            "evaluate": {"seconds": 1.0, "key": "e" * 64, "digest": "2" * 64},
            "export": {"seconds": 1.0, "key": "x" * 64, "digest": "3" * 64},
        },
    }  # fmt: skip
    made["verdict"] = words.verdict(made)
    return made


def test_each_csv_line_can_be_traced_to_its_stage(report: dict[str, Any]) -> None:
    rows = list(csv.DictReader(io.StringIO(formats.csv_text(report))))
    found = {(row["model"], row["metric"]): row for row in rows}
    student = found["distilled", "f1"]
    assert (student["value"], student["n"], student["unit"]) == ("0.6", "40", "share")
    assert (student["stage"], student["key"], student["digest"]) == ("evaluate", "e" * 64, "2" * 64)
    assert found["gguf-f16", "disk_bytes"]["key"] == "x" * 64
    pair = found["distilled_minus_undistilled", "f1"]
    assert (pair["significant"], pair["stage"]) == ("True", "evaluate")


def test_markdown_has_every_table_and_no_markup_of_others(report: dict[str, Any]) -> None:
    text = formats.markdown(report)
    assert text.startswith("# a \\| b\n")
    assert "| Answer F1, % | 90.0 (80.0 to 100.0) |" in text
    for title in ("By kind of row", "By position", "How many rows it takes", "seen in training"):
        assert title in text
    assert "&lt;b>a note" in text


def test_tables_say_what_was_measured(report: dict[str, Any]) -> None:
    found = {part["id"]: part for part in details.parts(report)}
    assert list(found) == ["kinds", "positions", "power", "contamination", "sources"]
    assert found["kinds"]["rows"][1][:4] == ["refusal", "Distilled", "40", "70.0 (60.0 to 80.0)"]
    assert found["positions"]["columns"] == ["Answer token", "Tokens", "Distilled"]
    assert found["positions"]["rows"] == [
        ["1", "40", "0.500 (90.0%)"],
        ["33 on", "7", "0.100 (100.0%)"],
    ]
    power = found["power"]["rows"][0]
    assert power[1:] == ["Answer F1", "40", "17.7 points", "503", "3,140", "12,559", words.MISSING]
    assert found["contamination"]["rows"][0][0] == "Distilled"
    assert found["sources"]["rows"][0] == ["the test rows", "curate", "c" * 16, "1" * 16]


def test_a_difference_that_is_neither_good_nor_bad_is_only_a_difference(
    report: dict[str, Any],
) -> None:
    page = render(report)
    assert "they differ" in page
    assert page.count("Distilled better") == 1
    pair = report["differences"]["distilled_minus_undistilled"]["f1"]
    assert words.outcome("f1", pair | {"significant": False}) == "unclear"
    assert words.outcome("perplexity", pair) == "worse"


def test_a_model_card_gets_the_same_figures(report: dict[str, Any]) -> None:
    (index,) = formats.model_index(report, "distilled")
    result = index["results"][0]
    assert result["dataset"] == {
        "type": "potstill", "name": "a | b, held-out rows", "split": "test", "revision": "1" * 64,
    }  # fmt: skip
    f1 = next(one for one in result["metrics"] if one["type"] == "f1")
    assert f1["value"] == pytest.approx(60)
    assert f1["args"] == {"low": pytest.approx(50), "high": pytest.approx(70), "n": 40}
    assert formats.model_index(report, "nobody") == []
