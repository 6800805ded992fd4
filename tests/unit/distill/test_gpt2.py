"""GPT-2 through the whole training: its own names, learned positions, a template of the recipe."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from potstill.core.events import read_events
from potstill.distill import Distiller
from potstill.distill.plan import facts
from potstill.errors import ModelError, UsageError
from potstill.models.load import load_model, load_tokenizer
from potstill.models.refs import shapes
from potstill.recipe import Recipe

TEMPLATE = Recipe.load("gpt2-qa-local").template
ROWS = [
    {"question": f"Which {what} is {n}?", "answer": f"the {what} of desk {n}"}
    for n in range(10)
    for what in ("account", "voucher")
]
SETTINGS: dict[str, Any] = {
    "template": TEMPLATE,
    "temperature": 0.7,
    "ce_weight": 0.01,  # a random teacher disagrees with the rows
    "kd_weight": 1.0,
    "learning_rate": 3e-4,
    "step_tokens": 200,
    "micro_tokens": 256,
    "sequence_tokens": 64,
    "epochs": 2,
    "validations": 2,
    "precision": "fp32",
}
CUT = {"drop_layers": 1, "axes": "depth", "refit": False, "calibration_tokens": 64}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, random_model: Callable[..., Any]) -> Path:
    """Three layers, and the tokenizer of the shape, which has no template."""
    folder = tmp_path_factory.mktemp("gpt2")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(shapes()["gpt2-mini"] / name, folder / name)
    words = json.loads((shapes()["gpt2-mini"] / "config.json").read_text())["vocab_size"]
    end = {"bos_token_id": 0, "eos_token_id": 0}
    model = random_model("gpt2", spread=0.2, vocab_size=words, max_position_embeddings=64, **end)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def distil(teacher: Path, tmp_path: Path) -> Callable[..., Any]:
    """distil(name, **settings) -> what came of a training on `ROWS`."""

    def run(name: str, **settings: Any) -> Any:
        made = Distiller(teacher, CUT, output=tmp_path / name, **{**SETTINGS, **settings})
        return made.train(ROWS)

    return run


def test_a_cut_gpt2_learns_and_carries_the_template(
    distil: Callable[..., Any], teacher: Path, tmp_path: Path
) -> None:
    assert load_tokenizer(teacher).chat_template is None
    done = distil("packed", batching="packed")
    first, *_, last = done.history["validation"]
    assert last["kl"] < first["kl"]
    model = load_model(done.folder)
    assert model.config.n_layer == 2
    assert model.lm_head.weight is model.transformer.wte.weight
    kept = load_tokenizer(done.folder)
    assert kept.chat_template == TEMPLATE
    asked = [{"role": "user", "content": "Who?"}]
    prompt = kept.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert prompt == "Question: Who?\nAnswer:"
    events, _ = read_events(tmp_path / "packed" / "events.jsonl")
    assert not [event for event in events if event["kind"] == "warning"]  # nothing fell back


def test_a_pretrained_student_is_given_the_template_too(
    teacher: Path, tmp_path: Path, random_model: Callable[..., Any]
) -> None:
    student = Path(shutil.copytree(teacher, tmp_path / "student"))
    words = json.loads((teacher / "config.json").read_text())["vocab_size"]
    end = {"bos_token_id": 0, "eos_token_id": 0, "num_hidden_layers": 1}
    model = random_model("gpt2", 5, 0.2, vocab_size=words, max_position_embeddings=64, **end)
    model.save_pretrained(student)
    settings = {**SETTINGS, "epochs": 1}
    done = Distiller(teacher, str(student), output=tmp_path / "out", **settings).train(ROWS)
    assert load_model(done.folder).config.n_layer == 1
    assert load_tokenizer(done.folder).chat_template == TEMPLATE
    assert load_tokenizer(student).chat_template is None


def test_rows_side_by_side_teach_the_same_as_packed_ones(distil: Callable[..., Any]) -> None:
    packed, padded = (
        distil(name, batching=name, share_beginnings=False) for name in ("packed", "buckets")
    )
    begins = packed.history["validation"][0]["kl"], padded.history["validation"][0]["kl"]
    assert begins[0] == pytest.approx(begins[1], rel=1e-5)
    pairs = zip(packed.history["validation"], padded.history["validation"], strict=True)
    for one, other in pairs:
        assert one["kl"] == pytest.approx(other["kl"], rel=2e-2)  # rounding, grown by AdamW


@pytest.mark.parametrize(
    "settings",
    [
        {"hidden": {"mse_weight": 0.5, "layers": "uniform"}},
        {"attention": {"weight": 0.5}, "batching": "packed"},
        {"gradient_checkpointing": True},
        {
            "on_policy": {"share": 0.5, "max_new_tokens": 4, "batch_tokens": 256}
            | {"allow_endless": True}
        },
    ],
    ids=["hidden", "attention", "checkpointing", "on_policy"],
)
def test_the_other_terms_find_its_layers(
    distil: Callable[..., Any], settings: dict[str, Any]
) -> None:
    done = distil("one", epochs=1, **settings)  # the probe compares each term with a plain one
    assert all(torch.isfinite(one).all() for one in done.model.parameters())


def test_a_streamed_gpt2_teaches_the_same(distil: Callable[..., Any], teacher: Path) -> None:
    settings = {"signal": "hidden_bf16", "epochs": 1}
    whole, streamed = (
        Distiller(
            teacher,
            {**CUT, "method": "influence"},
            output=teacher.parent / f"by-{loading}",
            teacher_loading=loading,
            **{**SETTINGS, **settings},
        ).train(ROWS)
        for loading in ("resident", "streamed")
    )
    assert whole.history["validation"] == streamed.history["validation"]


def test_a_loaded_tokenizer_has_its_template_set_by_its_owner(teacher: Path) -> None:
    with pytest.raises(UsageError, match="carries its own chat template"):
        Distiller(
            load_model(teacher).requires_grad_(False),
            str(teacher),
            tokenizer=load_tokenizer(teacher),
            output="unused",
            template=TEMPLATE,
        )


def test_a_useless_template_is_told_before_anything_runs(tmp_path: Path) -> None:
    recipe = Recipe.load("gpt2-qa-local", ["template=Question?"])
    with pytest.raises(ModelError, match="does not make a prompt that holds the question"):
        facts(recipe.distill, tmp_path)
    recipe = Recipe.load("gpt2-qa-local")
    assert set(facts(recipe.distill, tmp_path)) == {"teacher"}
