"""A byte tokenizer and two-layer models, made here in milliseconds, shared by these tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCABULARY = 258


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    made = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>")
    made.chat_template = CHATML
    assert len(made) == VOCABULARY
    return made


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    def make(seed: int = 0, layers: int = 2, vocabulary: int = VOCABULARY, **more: Any) -> Any:
        """Random weights large enough that the distributions are far from uniform."""
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=257,
            pad_token_id=257,
            **more,
        )
        model = LlamaForCausalLM(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0.0, 0.25)
        return model

    return make


@pytest.fixture(scope="session")
def save_model(tokenizer: Any) -> Callable[[Any, Path], Path]:
    def save(model: Any, folder: Path) -> Path:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save
