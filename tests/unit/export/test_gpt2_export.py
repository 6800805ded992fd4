"""A GPT-2 with a recipe's template: the same prompt ids here and in llama.cpp, and it stops."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from potstill.export.gguf import convert, fallback_note, quantize, tensor_types
from potstill.export.parity import Row, check_prompts, check_special, check_stop, score_files
from potstill.export.serving import modelfile, pieces_of
from potstill.inference.base import Request
from potstill.inference.transformers import TransformersModel
from potstill.models import native
from potstill.models.chat import encode_example
from potstill.models.load import gguf_metadata, load_model, load_tokenizer
from potstill.models.refs import shapes
from potstill.models.save import save_model
from potstill.models.surgery import drop_layers
from potstill.models.tokens import CONVERSATIONS, check_chat_template, token_parity
from potstill.recipe import Recipe
from potstill.records import Turn

TEMPLATE = Recipe.load("gpt2-qa-local").template
ASKED = ("Which desk looks after petty cash tin?", "What is 1310?", "  Zürich, 你好?\n\n(a) 12 {x}")


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory, random_model: Callable[..., Any]) -> Path:
    """A random GPT-2 that lost a layer, with the shape's tokenizer and the recipe's template."""
    folder = tmp_path_factory.mktemp("gpt2")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(shapes()["gpt2-mini"] / name, folder / name)
    own = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 128}
    end = {"bos_token_id": 0, "eos_token_id": 0}
    model = random_model("gpt2", spread=0.2, vocab_size=3300, **own, **end)
    model.save_pretrained(folder)
    tokenizer = load_tokenizer(folder, TEMPLATE)
    model.resize_token_embeddings(len(tokenizer))
    save_model(drop_layers(model, [1]), tokenizer, folder / "student")
    return folder / "student"


def test_the_same_prompt_ids_in_training_transformers_and_llamacpp(
    student: Path, tmp_path: Path
) -> None:
    tokenizer, model = load_tokenizer(student), load_model(student)
    assert tokenizer.chat_template == TEMPLATE  # it is carried along
    gguf = tmp_path / "student.gguf"
    convert(student, gguf, tokenizer, "student", "f32")
    assert gguf_metadata(gguf)["tokenizer.ggml.pre"] == "gpt-2"
    assert gguf_metadata(gguf)["general.architecture"] == "gpt2"
    token_parity(tokenizer, gguf, ASKED).require("gpt2-mini")
    check_chat_template(tokenizer, gguf)
    check_special(gguf.name, tokenizer, gguf_metadata(gguf))

    said = Turn(role="assistant", content="the bank desk")
    turns = [(Turn(role="user", content=text),) for text in ASKED]
    trained = [encode_example(tokenizer, (*asked, said), 100) for asked in turns]
    rows = [
        Row(str(n), list(one.ids), one.answer_start, asked, ("x",), None)
        for n, (one, asked) in enumerate(zip(trained, turns, strict=True))
    ]
    answers = native.answer(
        gguf,
        [[turn.model_dump() for turn in row.turns] for row in rows],
        max_tokens=8,
        end=tokenizer.eos_token_id,
        timed_tokens=2,
        timed_rounds=1,
        context=128,
        threads=1,
    )
    check_prompts(gguf.name, rows, answers.answers)
    check_stop(gguf.name, answers)
    asking = TransformersModel(str(student), threads=1, parallel=1, context_tokens=128)
    for asked, one in zip(turns, trained, strict=True):
        assert asking._prompt_ids(Request(messages=asked, max_tokens=8)) == one.prompt
        assert one.answer[-1] == tokenizer.eos_token_id

    (sums,) = score_files({"f32": gguf}, model, None, rows, len(tokenizer), 1).values()
    assert sum(one["kl_student"] for one in sums) / sum(one["tokens"] for one in sums) < 1e-4
    with torch.no_grad():
        logits = model(torch.tensor([trained[0].prompt])).logits
    assert torch.isfinite(logits).all()


def test_learned_positions_are_no_matrix_that_fell_back(student: Path, tmp_path: Path) -> None:
    f16, q8 = tmp_path / "f16.gguf", tmp_path / "q8.gguf"
    convert(student, f16, load_tokenizer(student), "student")
    quantize(f16, q8, "q8_0", 1)
    assert fallback_note(q8, "q8_0") is None
    assert set(tensor_types(q8)) == {"Q8_0"}


def test_ollama_is_given_the_same_template(student: Path) -> None:
    tokenizer = load_tokenizer(student)
    pieces = pieces_of(tokenizer)
    assert pieces is not None
    for messages in CONVERSATIONS:
        wanted = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True
        )
        assert pieces.rendered(messages) == wanted
    text = modelfile(tokenizer, "student.gguf", 128)
    assert "Question: {{ .Content }}\nAnswer:" in text.replace("{{ end }}", "").replace(
        '{{ else if eq .Role "assistant" }}Answer: {{ .Content }}<|endoftext|>', ""
    ).replace('{{ else if eq .Role "system" }}{{ .Content }}\n\n', "")
    assert 'PARAMETER stop "<|endoftext|>"' in text
