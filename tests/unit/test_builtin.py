"""What is said of built-in recipes follows from them and from the models that they name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from potstill.builtin import DAY, describe, recipes
from potstill.errors import RecipeError
from potstill.recipe import Recipe, builtin_recipes


def written(folder: Path, **fields: Any) -> Path:
    data = {
        "name": "published",
        "description": "A test.",
        "teacher": "google/gemma-7b-it",
        "ingest": {"sources": ["squad.json"]},
    }
    path = folder / "published.yaml"
    path.write_text(yaml.safe_dump(data | fields))
    return path


def test_every_built_in_recipe_is_described(tmp_path: Path) -> None:
    found = recipes(tmp_path)
    assert [one.name for one in found] == list(builtin_recipes())
    for one in found:
        recipe = Recipe.load(one.name)
        assert (one.description, one.teacher) == (recipe.description, recipe.teacher)
        assert one.description
        assert one.memory_bytes > 1e9
        assert one.seconds > 0
        assert one.models
        assert one.student_parameters
        assert [command.split()[1] for _, command in one.commands] == ["plan", "run", "new"]
    assert json.loads(json.dumps([one.as_dict() for one in found]))[0]["name"] == found[0].name


def test_the_quickstart_needs_neither_hub_nor_gpu(tmp_path: Path) -> None:
    one = describe("quickstart", tmp_path)
    assert (one.gpu, one.assumes, one.student) == ("", "", "")
    assert one.teacher_parameters == 134_515_008
    assert one.student_parameters == round(0.75 * 134_515_008)
    assert one.gives == "a model that chats: safetensors, GGUF F16, GGUF Q4_K_M"
    assert one.terms == ("Apache-2.0",)


def test_published_models_are_described_from_the_catalogue(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        distill={"student": {"model": "google/gemma-2b-it"}, "teacher_precision": "4bit"},
        export={"quantisations": ["q8_0"]},
    )
    one = describe(path, tmp_path)
    assert (one.teacher_parameters, one.student_parameters) == (8_537_680_896, 2_506_172_416)
    assert one.download_bytes == 2 * (8_537_680_896 + 2_506_172_416)
    assert "4 bits" in one.gpu
    assert one.assumes == "1,000 rows"
    assert one.gives == "a model that chats: safetensors, GGUF F16, GGUF Q8_0"
    page = "https://huggingface.co/google/gemma"
    assert one.terms == (f"Gemma (accept at {page}-7b-it)", f"Gemma (accept at {page}-2b-it)")
    assert len(one.commands) == 2  # no project is begun from a file


def test_a_gpu_is_advised_where_the_processor_takes_days(tmp_path: Path) -> None:
    path = written(tmp_path, ingest={"sources": ["book.pdf"]})
    one = describe(path, tmp_path)
    assert one.seconds > DAY
    assert one.gpu == f"would take about {one.seconds / DAY:.0f} days on this processor"


def test_an_encoder_marks_answers(tmp_path: Path) -> None:
    student = {"model": "distilbert/distilbert-base-uncased"}
    one = describe(written(tmp_path, distill={"student": student}), tmp_path)
    assert one.gives.startswith("a model that marks answers in passages")
    assert one.student_parameters == 66_985_530


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"There is no recipe called quikstart.*quickstart\?"):
        describe("quikstart")
