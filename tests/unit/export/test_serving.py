"""Ollama's Modelfile says the template's own words, or none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from potstill.export.serving import modelfile, pieces_of, serving
from potstill.models.load import load_tokenizer
from potstill.models.tokens import CONVERSATIONS

DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
)


@pytest.mark.parametrize("default", [False, True])
def test_the_template_in_pieces_renders_every_conversation_alike(
    tiny_folder: Path, default: bool
) -> None:
    tokenizer = load_tokenizer(tiny_folder)
    if default:
        tokenizer.chat_template = DEFAULT_SYSTEM + tokenizer.chat_template
    pieces = pieces_of(tokenizer)
    assert pieces is not None
    assert set(pieces.around) == {"system", "user", "assistant"}
    for messages in CONVERSATIONS:
        wanted = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True
        )
        assert pieces.rendered(messages) == wanted
    go = pieces.in_go()
    assert go.count("{{ .Content }}") == 3
    assert go.endswith("<|im_start|>assistant\n")
    assert ("Be kind." in go) == default


def test_a_template_that_changes_words_is_left_to_ollama(make_pieces: Callable[..., Any]) -> None:
    text = modelfile(make_pieces(), "student-q8_0.gguf", 512)  # Gemma's trims what it is given
    assert text.startswith("FROM ./student-q8_0.gguf\n# The chat template is more")
    assert "TEMPLATE" not in text
    assert 'PARAMETER stop "<end_of_turn>"' in text
    assert "PARAMETER num_ctx 512" in text


def test_a_modelfile_holds_the_template_and_the_end_of_turn(tiny_folder: Path) -> None:
    text = modelfile(load_tokenizer(tiny_folder), "a.gguf", None)
    assert 'TEMPLATE """{{ range .Messages }}{{ if eq .Role "user" }}<|im_start|>user' in text
    assert 'PARAMETER stop "<|im_end|>"' in text
    assert "num_ctx" not in text


def test_the_serving_lines_name_the_file_and_the_window() -> None:
    text = serving("student-q4_k_m.gguf", 2048)
    assert "llama-server -m student-q4_k_m.gguf --jinja -c 2048" in text
    assert "vllm serve ./safetensors --served-model-name student --max-model-len 2048" in text
    assert "ollama create student -f Modelfile" in text
