"""Questions of another file: the same answers as transformers' own, rows that fit, refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from potstill.errors import InputError
from potstill.evaluate import EvaluateConfig
from potstill.evaluate.answer_scores import Gold
from potstill.evaluate.outside import answer_rows

CONFIG = EvaluateConfig(answer_tokens=8, batch_size=2, max_tokens=400)
ROWS = [
    Gold(f"r{n}", ("teal",), question=f"Which colour has part {n}?", passage="It is teal. " * n)
    for n in range(5)
]


def asked(row: Gold) -> str:
    return f"{row.passage}{row.question}"


@pytest.fixture
def models(make_model: Callable[..., Any], save_model: Any, tmp_path: Path) -> dict[str, Path]:
    return {
        name: save_model(make_model(seed), tmp_path / name)
        for seed, name in enumerate(("teacher", "distilled"))
    }


def test_answers_are_those_of_generate_one_row_at_a_time(
    models: dict[str, Path], make_model: Callable[..., Any], tokenizer: Any
) -> None:
    heard: list[tuple[str, int]] = []
    found = answer_rows(ROWS, asked, models, CONFIG, lambda *told: heard.append(told))
    assert found.too_long == ()
    for seed, name in enumerate(models):
        model = make_model(seed)
        for row in ROWS:
            messages = [{"role": "user", "content": asked(row)}]
            text = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
            ids = tokenizer(text, return_tensors="pt").input_ids
            with torch.inference_mode():
                made = model.generate(ids, do_sample=False, max_new_tokens=8)
            said = tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True).strip()
            assert found.answers[name][row.id] == said
    assert heard[:3] == [("teacher", 2), ("teacher", 4), ("teacher", 5)]


def test_rows_without_room_are_named_and_left_out(models: dict[str, Path]) -> None:
    long = Gold("long", ("x",), question="What?", passage="word " * 200)
    found = answer_rows([*ROWS, long], asked, models, CONFIG)
    assert found.too_long == ("long",)
    assert set(found.answers["teacher"]) == {row.id for row in ROWS}
    with pytest.raises(InputError, match="None of 1 rows leaves room"):
        answer_rows([long], asked, models, CONFIG)
    with pytest.raises(InputError, match="row bare has no question"):
        answer_rows([Gold("bare", ("x",))], asked, models, CONFIG)
