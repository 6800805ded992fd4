"""What is known of the published models that recipes name, before anything is downloaded.

In: a hub id. Out: a `Published`: the fields of its config.json that decide its size, its number of
parameters, how it is stored, its licence. A test builds each of them and counts. Data alone: asks
nobody; where the hub can be reached, `hub.py` knows what is true today.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

NUMBER_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Published:
    """A model of the hub."""

    name: str
    parameters: int
    """Tied ones once."""
    config: Mapping[str, Any]
    """Of its config.json: what decides sizes, spelled out where the family's defaults would do."""
    dtype: Literal["float32", "float16", "bfloat16"]
    """Of the numbers in its files."""
    licence: str
    """As its page names it; empty: its page does not say."""
    gated: bool = False
    """Whether its terms must be accepted on its page, by the account that downloads it."""
    buffers: int = 0
    """Numbers in its files that are no weights: GPT-2's masks."""

    @property
    def bytes(self) -> int:
        """What is downloaded, but for the tokenizer."""
        return NUMBER_BYTES[self.dtype] * (self.parameters + self.buffers)


def published(name: str) -> Published | None:
    """What is known of the hub model of that id; None: nothing."""
    return PUBLISHED.get(name)


def _gpt2(layers: int, hidden: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": 50_257,
        "n_positions": 1024,
        "n_embd": hidden,
        "n_layer": layers,
        "n_head": heads,
        "tie_word_embeddings": True,
    }


def _decoder(
    model_type: str,
    architecture: str,
    vocabulary: int,
    layers: int,
    hidden: int,
    intermediate: int,
    heads: tuple[int, int],
    head_dim: int,
    positions: int,
    tied: bool,
) -> dict[str, Any]:
    """heads: for queries; for keys and values."""
    return {
        "model_type": model_type,
        "architectures": [architecture],
        "vocab_size": vocabulary,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "head_dim": head_dim,
        "max_position_embeddings": positions,
        "tie_word_embeddings": tied,
    }


GPT2_LARGE = _gpt2(layers=36, hidden=1280, heads=20)
MASK = 1024 * 1024  # of a layer of GPT-2, in files that were saved when masks still were

PUBLISHED: dict[str, Published] = {
    one.name: one
    for one in (
        Published(
            "roshan0123/gpt2-large-accounting-finetuned",
            774_030_080,
            GPT2_LARGE,
            dtype="float32",
            licence="",
        ),
        Published(
            "openai-community/gpt2-large",
            774_030_080,
            GPT2_LARGE,
            dtype="float32",
            licence="MIT",
            buffers=36 * MASK,
        ),
        Published(
            "distilbert/distilgpt2",
            81_912_576,
            _gpt2(layers=6, hidden=768, heads=12),
            dtype="float32",
            licence="Apache-2.0",
            buffers=6 * MASK,
        ),
        Published(
            "distilbert/distilbert-base-uncased",
            66_985_530,  # the head that it was pretrained with included
            {
                "model_type": "distilbert",
                "architectures": ["DistilBertForMaskedLM"],
                "vocab_size": 30_522,
                "max_position_embeddings": 512,
                "dim": 768,
                "hidden_dim": 3072,
                "n_layers": 6,
                "n_heads": 12,
                "tie_word_embeddings": True,
            },
            dtype="float32",
            licence="Apache-2.0",
        ),
        Published(
            "google/gemma-7b-it",
            8_537_680_896,
            _decoder(
                "gemma", "GemmaForCausalLM", 256_000, 28, 3072, 24_576, (16, 16), 256, 8192, True
            ),
            dtype="bfloat16",
            licence="Gemma",
            gated=True,
        ),
        Published(
            "google/gemma-2b-it",
            2_506_172_416,
            _decoder(
                "gemma", "GemmaForCausalLM", 256_000, 18, 2048, 16_384, (8, 1), 256, 8192, True
            ),
            dtype="bfloat16",
            licence="Gemma",
            gated=True,
        ),
        Published(
            "google/gemma-2-2b-it",
            2_614_341_888,
            _decoder(
                "gemma2", "Gemma2ForCausalLM", 256_000, 26, 2304, 9216, (8, 4), 256, 8192, True
            ),
            dtype="bfloat16",
            licence="Gemma",
            gated=True,
        ),
        Published(
            "microsoft/Phi-3-mini-4k-instruct",
            3_821_079_552,
            _decoder("phi3", "Phi3ForCausalLM", 32_064, 32, 3072, 8192, (32, 32), 96, 4096, False),
            dtype="bfloat16",
            licence="MIT",
        ),
        Published(
            "meta-llama/Llama-2-7b-chat-hf",
            6_738_415_616,
            _decoder(
                "llama", "LlamaForCausalLM", 32_000, 32, 4096, 11_008, (32, 32), 128, 4096, False
            ),
            dtype="float16",
            licence="Llama 2",
            gated=True,
        ),
        Published(
            "mistralai/Mistral-7B-Instruct-v0.2",
            7_241_732_096,
            _decoder(
                "mistral",
                "MistralForCausalLM",
                32_000,
                32,
                4096,
                14_336,
                (32, 8),
                128,
                32_768,
                False,
            ),
            dtype="bfloat16",
            licence="Apache-2.0",
            gated=True,
        ),
    )
}
