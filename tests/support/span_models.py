"""Tiny encoders that mark spans, with a tokenizer of whole words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

WORDS = (
    "the boiler of unit holds litres keeper notes time in log how many what does when is a an and "
    "drained every days valve opens at bar who where red blue green lamp tower north south"
).split()


def word_tokenizer() -> Any:
    """[CLS] question [SEP] passage [SEP], one token a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    core = Tokenizer(models.WordLevel({name: n for n, name in enumerate(names)}, "[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]",
        sep_token="[SEP]", model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        model_max_length=64,
    )  # fmt: skip


def save_span_model(
    folder: Path, *, seed: int = 0, head: bool = True, spread: float = 0.3, dropout: float = 0.0
) -> Path:
    """A random BERT of two layers in `folder`; without `head` a bare encoder."""
    import torch
    from transformers import BertConfig, BertForQuestionAnswering, BertModel

    tokenizer = word_tokenizer()
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=64, hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )  # fmt: skip
    model = (BertForQuestionAnswering if head else BertModel)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, spread)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def export_tiny_spans(folder: Path, target: Path) -> Path:
    """model.onnx and model-int8.onnx of a tiny model in `target`, whatever int8 costs there."""
    from potstill.export.chain import Allowance
    from potstill.export.onnx import export_span_model

    pairs = [("how many litres", "the boiler holds litres"), ("who", "the keeper notes the time")]
    loose = {"fp32": Allowance(1e-6, 1.0), "int8": Allowance(50.0, 0.0)}
    export_span_model(folder, target, pairs, allowances=loose, resamples=100)
    return target
