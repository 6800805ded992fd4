"""Where two models part is what their own logits say, token by token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from potstill.errors import ModelError
from potstill.evaluate.disagreement import disagreement, pieces
from potstill.models.chat import encode_example
from potstill.records import Turn

TURNS = (
    Turn(role="user", content="Wie spät ist es?"),
    Turn(role="assistant", content="Es ist spät."),
)


def test_gaps_are_those_of_the_models_own_logits(
    make_model: Callable[..., Any],
    save_model: Callable[[Any, Path], Path],
    tokenizer: Any,
    tmp_path: Path,
) -> None:
    models = [make_model(seed=1, layers=3), make_model(seed=2)]
    folders = [save_model(one, tmp_path / str(place)) for place, one in enumerate(models)]
    found = disagreement(*folders, TURNS)
    encoded = encode_example(tokenizer, TURNS, 4096)
    with torch.no_grad():
        teacher, student = (
            torch.log_softmax(one(input_ids=torch.tensor([encoded.ids])).logits[0].double(), -1)
            for one in models
        )
    rows = slice(encoded.answer_start - 1, len(encoded.ids) - 1)
    teacher, student = teacher[rows], student[rows]
    kl = torch.nn.functional.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
    assert [one.kl for one in found] == pytest.approx(kl.tolist(), rel=1e-3, abs=1e-5)
    assert [one.agree for one in found] == (teacher.argmax(-1) == student.argmax(-1)).tolist()
    assert [one.instead for one in found] == [
        tokenizer.decode([one]) for one in teacher.argmax(-1).tolist()
    ]
    own = student.exp()[range(len(found)), encoded.answer].tolist()
    assert [one.probability for one in found] == pytest.approx(own, rel=1e-3)
    assert "".join(one.text for one in found).startswith("Es ist spät.<|im_end|>")
    assert {one.text for one in found if one.special} == {"<|im_end|>"}


def test_a_model_does_not_part_from_itself(
    make_model: Callable[..., Any], save_model: Callable[[Any, Path], Path], tmp_path: Path
) -> None:
    folder = save_model(make_model(seed=1), tmp_path / "one")
    found = disagreement(folder, folder, TURNS)
    assert all(one.agree and one.kl == pytest.approx(0, abs=1e-6) for one in found)


def test_other_tokens_are_refused_in_words(
    make_model: Callable[..., Any], save_model: Callable[[Any, Path], Path], tmp_path: Path
) -> None:
    folder = save_model(make_model(seed=1), tmp_path / "one")
    other = save_model(make_model(seed=1), tmp_path / "two")
    text = (other / "tokenizer.json").read_text("utf-8")
    (other / "tokenizer.json").write_text(text.replace("<|im_start|>", "<|begin|>"), "utf-8")
    with pytest.raises(ModelError, match="not its teacher's"):
        disagreement(folder, other, TURNS)


@given(st.text(max_size=30))
def test_pieces_are_the_text(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    found = pieces(tokenizer, ids)
    assert len(found) == len(ids)
    assert "".join(found) == tokenizer.decode(ids, clean_up_tokenization_spaces=False)
