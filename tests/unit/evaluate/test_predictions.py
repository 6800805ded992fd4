"""Stored answers scored again: each format, what does not meet, and the same digits each time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from potstill.errors import InputError
from potstill.evaluate.predictions import ALONE, read_golds, read_predictions, score_file

SQUAD = {
    "data": [
        {
            "paragraphs": [
                {
                    "context": "The valve opens at 42 turns.",
                    "qas": [
                        {"id": "a", "question": "When?", "answers": [{"text": "42 turns"}]},
                        {"id": "b", "question": "Who?", "answers": [], "is_impossible": True},
                        {"id": "c", "question": "What?", "answers": [{"text": "The valve"}]},
                    ],
                }
            ]
        }
    ]
}

TURNS = [{"role": "user", "content": "When?"}, {"role": "assistant", "content": "42 turns"}]
PAIR = [{"id": "1", "answer": "y"}, {"id": "2", "answer": "y"}]


def write(path: Path, value: Any) -> Path:
    lines = isinstance(value, list) and path.suffix == ".jsonl"
    text = "\n".join(map(json.dumps, value)) if lines else json.dumps(value)
    path.write_text(text)
    return path


def test_squad_files_of_both_kinds_are_scored_as_their_script_does(tmp_path: Path) -> None:
    said = write(tmp_path / "said.json", {"a": "at 42 turns", "b": "", "c": "valve"})
    golds = write(tmp_path / "golds.json", SQUAD)
    found = score_file(said, golds)
    metrics = found["models"][ALONE]["metrics"]
    assert metrics["f1"]["value"] == pytest.approx((2 * 2 / 5 + 1 + 1) / 3)
    assert metrics["em"]["value"] == pytest.approx(2 / 3)
    assert metrics["grounded"]["value"] == 1.0
    assert found["examples"] == {"evaluated": 3, "missing": {ALONE: 0}, "unknown": {ALONE: 0}}
    assert all(len(digest) == 64 for digest in found["files"].values())
    assert score_file(said, golds) == found  # to the last digit
    old = json.loads(json.dumps(SQUAD))
    for question in old["data"][0]["paragraphs"][0]["qas"]:
        question.pop("is_impossible", None)
    known = read_golds(write(tmp_path / "v1.json", old))
    assert [gold.v2 for gold in known.values()] == [False] * 3


@pytest.mark.parametrize(
    "row",
    [
        {"answers": ["42 turns"]}, {"answer": "42 turns"}, {"golds": ["42 turns"]},
        {"answers": {"text": ["42 turns"], "answer_start": [19]}},
        {"answers": [{"text": "42 turns"}]},
        {"turns": TURNS, "provenance": {"document": "d", "chunk": "c"}},
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_gold_answers_come_in_many_shapes(tmp_path: Path, row: Any, name: str) -> None:
    rows = [{"id": "1", **row}, {"id": "2", **row}]
    known = read_golds(write(tmp_path / name, rows))
    assert [gold.answers for gold in known.values()] == [("42 turns",)] * 2


@pytest.mark.parametrize("field", ["answer", "prediction", "prediction_text", "text"])
def test_several_models_of_one_file_are_compared(tmp_path: Path, field: str) -> None:
    rows = [
        {"id": str(n), "model": model, field: text, "golds": ["42 turns"], "kind": kind}
        for model, text in (("big", "42 turns"), ("small", "no"))
        for n, kind in enumerate(("qa", "qa", "summary", "summary"))
    ]
    found = score_file(write(tmp_path / "said.jsonl", rows))
    pair = found["differences"]["big_minus_small"]
    assert pair["em"] == {"value": 1, "low": 1, "high": 1, "n": 4, "significant": True}
    assert found["models"]["big"]["by_kind"]["summary"]["em"]["n"] == 2
    assert found["power"]["big_minus_small"]["em"]["spread"] == 0


def test_rows_without_an_answer_count_as_empty_and_are_counted(tmp_path: Path) -> None:
    golds = write(tmp_path / "g.jsonl", [{"id": str(n), "answer": "42"} for n in range(4)])
    said = write(tmp_path / "said.json", {"0": "42", "1": "42", "9": "42"})
    found = score_file(said, golds)
    assert found["models"][ALONE]["metrics"]["em"]["value"] == 0.5
    assert found["examples"]["missing"] == {ALONE: 2}
    assert found["examples"]["unknown"] == {ALONE: 1}


@pytest.mark.parametrize(
    ("said", "golds", "message"),
    [
        ({"1": "x"}, None, "no gold answers to score"),
        ({"9": "x"}, PAIR, "None of the 1 ids"),
        ({"1": " ", "2": ""}, PAIR, "are empty"),
        ({"1": "x"}, [{"id": "1", "answer": "y"}], "needs at least two"),
        ({"1": "x"}, [{"id": "1", "answer": "y"}, {"id": "1", "answer": "y"}], "there twice"),
        ({"1": "x"}, [{"id": "1"}], "line 1: no gold answer"),
        ({"1": "x"}, {"data": [{}]}, "is not a SQuAD file"),
        ({"1": "x"}, {"data": 5}, "is not a file of gold"),
        ({"1": "x"}, [], "holds no gold"),
        ([{"id": "1"}], [{"id": "1", "answer": "y"}], "line 1: not a prediction"),
        ([7, 8], [{"id": "1", "answer": "y"}], "not an object"),
        ([{"id": "1", "text": "a"}] * 2, [{"id": "1", "answer": "y"}], "second answer"),
        ([], [{"id": "1", "answer": "y"}], "holds no predictions"),
    ],
)  # fmt: skip
def test_what_cannot_be_scored_is_one_clear_error(
    tmp_path: Path, said: Any, golds: Any, message: str
) -> None:
    ending = "jsonl" if isinstance(said, list) and said else "json"
    path = write(tmp_path / f"said.{ending}", said)
    other = None
    if golds is not None:
        jsonl = isinstance(golds, list) and golds
        other = write(tmp_path / f"golds.{'jsonl' if jsonl else 'json'}", golds)
    with pytest.raises(InputError, match=message):
        score_file(path, other)


def test_a_line_that_is_no_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "said.jsonl"
    path.write_text('{"id": "1", "text": "a"}\n{"id": \n')
    with pytest.raises(InputError, match="line 2: not valid JSON"):
        read_predictions(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        read_predictions(path)
