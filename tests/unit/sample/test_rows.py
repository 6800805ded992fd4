"""The sample rows and the shape's tokenizer are what their tools write, and fit their purpose."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from potstill.curate.decontaminate import Evaluation, asked
from potstill.ingest.columns import find_columns
from potstill.ingest.examples import row_of
from potstill.ingest.row_files import open_rows
from potstill.ingest.rows_config import RowsConfig
from potstill.models.refs import shapes
from potstill.records import Example
from potstill.sample import sample_path

TOOLS = Path(__file__).parents[3] / "tools"
FILE = sample_path("final_qa.csv")


def _tool(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    """The rows that can be read."""
    file, config, found = open_rows(FILE, "CSV"), RowsConfig(), []
    columns = find_columns(file.columns, config.columns)
    for raw in file.rows:
        if raw.problem is None and all(str(value).strip() for value in raw.fields.values()):
            found.append(row_of(raw, columns, config, "final_qa").example)
    file.close()
    return found


def test_the_rows_are_what_their_tool_writes() -> None:
    assert _tool("make_rows").table() == FILE.read_text("utf-8")


def test_the_shapes_tokenizer_is_trained_on_the_samples_again() -> None:
    made = json.loads(_tool("make_shape").tokenizer().to_str())
    stored = json.loads((shapes()["gpt2-mini"] / "tokenizer.json").read_text("utf-8"))
    assert made == stored
    config = json.loads((shapes()["gpt2-mini"] / "config.json").read_text("utf-8"))
    assert config["vocab_size"] == len(stored["model"]["vocab"])


def test_the_rows_have_three_forms_and_the_faults_of_a_real_export(
    examples: list[Example],
) -> None:
    with FILE.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["question", "answer"]
    assert 550 < len(rows) < 1000
    kinds = {example.kind for example in examples}
    assert kinds == {"qa", "multiple_choice", "fill_in_the_blank"}
    assert any(len(row) != 2 for row in rows)
    assert any(len(row) == 2 and not row[1].strip() for row in rows)
    plain = [" ".join(row[0].split()).casefold() for row in rows]
    assert len(plain) - len(set(plain)) >= 9


def test_a_row_that_is_held_out_repeats_no_other_in_its_words(examples: list[Example]) -> None:
    plain = [example for example in examples if example.kind == "qa"]
    leaks = 0
    for place, example in enumerate(plain[:120]):
        others = Evaluation(13)
        for number, other in enumerate(plain[120:]):
            if other.question.strip().casefold() != example.question.strip().casefold():
                others.add(asked(other, str(number)))
        leaks += others.leak(asked(example, str(place))) is not None
    assert leaks <= 6
