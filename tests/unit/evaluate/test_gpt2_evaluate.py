"""What evaluation knows of GPT-2: its template is the recipe's, and its window is hard."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from potstill.errors import ModelError
from potstill.evaluate import EvaluateConfig
from potstill.evaluate.answer_scores import Gold
from potstill.evaluate.bench import _longest
from potstill.evaluate.encode import encode_examples
from potstill.evaluate.outside import answer_rows
from potstill.evaluate.sources import Source
from potstill.models.load import load_tokenizer
from potstill.models.refs import shapes
from potstill.recipe import Recipe
from potstill.records import Example, Provenance, Turn

TEMPLATE = Recipe.load("gpt2-qa-local").template


@pytest.fixture
def gpt2(tmp_path: Path, random_model: Callable[..., Any]) -> Path:
    """A random GPT-2 that reads 48 tokens, and its tokenizer without a template."""
    folder = tmp_path / "gpt2"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(shapes()["gpt2-mini"] / name, folder / name)
    words = json.loads((shapes()["gpt2-mini"] / "config.json").read_text())["vocab_size"]
    end = {"bos_token_id": 0, "eos_token_id": 0}
    random_model(
        "gpt2", spread=0.2, vocab_size=words, max_position_embeddings=48, **end
    ).save_pretrained(folder)
    return folder


def _row(question: str) -> Example:
    turns = (Turn(role="user", content=question), Turn(role="assistant", content="the bank desk"))
    return Example(
        id=question[:9],
        turns=turns,
        answers=("the bank desk",),
        provenance=Provenance(document="d", chunk=""),
    )


def test_all_models_are_prompted_by_the_recipes_template(gpt2: Path, tmp_path: Path) -> None:
    student = Path(shutil.copytree(gpt2, tmp_path / "student"))
    load_tokenizer(gpt2, TEMPLATE).save_pretrained(student)  # as distillation leaves it
    folders = {"teacher": gpt2, "distilled": student}
    rows = [_row("Who looks after petty cash tin?")]
    found, too_long = encode_examples(rows, folders, 48, TEMPLATE)
    teacher, own = (found.held[name][0].encoded for name in folders)
    assert teacher == own
    assert not too_long
    tokenizer = load_tokenizer(gpt2)
    assert tokenizer.decode(teacher.prompt) == f"Question: {rows[0].turns[0].content}\nAnswer:"
    assert tokenizer.decode(teacher.answer) == " the bank desk<|endoftext|>"
    with pytest.raises(ModelError, match="different tokens"):
        encode_examples(rows, folders, 48)


def test_no_example_is_longer_than_the_learned_positions(gpt2: Path) -> None:
    source = Source("teacher", gpt2, 0)
    config = EvaluateConfig(teacher=str(gpt2), answer_tokens=8, speed_tokens=4)
    assert _longest(config, [source]) == 40
    assert _longest(config.model_copy(update={"speed_tokens": 12}), [source]) == 36
    settings = config.model_copy(update={"template": TEMPLATE})
    rows = [Gold(id="a", question="Who?", answers=("x",))]
    rows.append(Gold(id="b", question="Who? " * 20, answers=("x",)))
    answered = answer_rows(rows, lambda row: row.question, {"teacher": gpt2}, settings)
    assert answered.too_long == ("b",)
    assert set(answered.answers["teacher"]) == {"a"}
