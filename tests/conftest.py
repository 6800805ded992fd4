"""A tiny Llama with a tokenizer, a chat template and digits of its own, shared by all tests."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# No test waits for the hub; those of it put a hub of their own in its place (hub_stand_in.py).
os.environ["HF_HUB_OFFLINE"] = "1"

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# "\n\n1" tells the splitting rules apart: only one that splits digits joins the line breaks.
TEXT = (
    "\n\n1. Open the valve.\n\n2. Drain the boiler.\n\n3. Close the valve.\n\n"
    "The boiler of unit 7 holds 1250 litres and is drained every 14 days.\n\n"
    "Valve B2 opens at 3.5 bar; the keeper notes the time, e.g. 08:45, in the log.\n"
    "What does the keeper note? The keeper notes the time. How many litres? 1250 litres.\n"
)
MakeModel = Callable[..., Path]


@pytest.fixture(scope="session", autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Studios of the tests do not fill the list of projects of whoever runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture
def full_disk() -> Path:
    """A file that takes no byte, as on a full disk."""
    device = Path("/dev/full")
    if not device.exists():
        pytest.skip("a Linux machine runs it, as CI is: only there is /dev/full")
    return device


@pytest.fixture(scope="session")
def random_model() -> Callable[..., Any]:
    """random_model(kind="llama", ...) -> a small model of that type of transformers, in fp32.

    spread: the weights' standard deviation, so large that what it says is far from uniform, as a
    trained model's is. norms: how far norms are from what they begin with. The others: fields of
    its config.
    """

    def make(
        kind: str = "llama", seed: int = 0, spread: float = 0.3, norms: float = 0.0, **fields: Any
    ) -> Any:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        small = {
            "vocab_size": 50,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
        }
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(small | fields)))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" not in name:
                    parameter.normal_(0.0, spread)
                elif norms:
                    parameter.add_(norms * torch.randn(parameter.shape))
        return model.eval()

    return make


@pytest.fixture(scope="session")
def make_student(random_model: Callable[..., Any]) -> MakeModel:
    """make_student(folder, ...) -> the folder, with a random model in bf16 and its tokenizer.

    text: what the tokenizer is trained on, up to `vocabulary` tokens.
    """

    def make(
        folder: Path,
        seed: int = 0,
        split_digits: bool = True,
        template: str | None = CHATML,
        *,
        text: str = TEXT,
        vocabulary: int = 400,
        layers: int = 2,
        positions: int = 512,
    ) -> Path:
        import torch
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
        from transformers import PreTrainedTokenizerFast

        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
        digits = pre_tokenizers.Digits(individual_digits=True)
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = (
            pre_tokenizers.Sequence([digits, byte_level]) if split_digits else byte_level
        )
        core.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        core.train_from_iterator([text], trainer)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=core,
            bos_token="<|im_start|>",
            eos_token="<|im_end|>",
            pad_token="<|endoftext|>",
        )
        tokenizer.chat_template = template
        model = random_model(
            seed=seed,
            spread=0.15,
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=layers,
            head_dim=16,
            max_position_embeddings=positions,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>"
    "{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


@pytest.fixture(scope="session")
def make_pieces() -> Callable[..., Any]:
    """make_pieces(...) -> a tokenizer as Gemma's: pieces with a sign for spaces, bytes for what no
    piece has, BOS put before a text. template None: none. form: a Unicode form that it changes
    texts to. prefix: a space is put before a text, as Llama 2's tokenizer does."""

    def make(template: str | None = GEMMA, form: str | None = None, prefix: bool = False) -> Any:
        from tokenizers import (
            AddedToken,
            Tokenizer,
            decoders,
            models,
            normalizers,
            pre_tokenizers,
            processors,
            trainers,
        )
        from transformers import PreTrainedTokenizerFast

        special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
        trained = Tokenizer(models.BPE(unk_token="<unk>"))
        trained.normalizer = normalizers.Replace(" ", "\u2581")
        trained.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
        alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
        trainer = trainers.BpeTrainer(vocab_size=330, show_progress=False)
        trained.train_from_iterator([TEXT.replace("\n", " ") + " caf\u00e9 \u65e5\u672c"], trainer)
        core = json.loads(trained.to_str())["model"]
        names = [*special, *alphabet, "\n", *core["vocab"]]
        merges = [tuple(pair) for pair in core["merges"]]
        made = Tokenizer(
            models.BPE(
                {name: number for number, name in enumerate(dict.fromkeys(names))},
                merges,
                unk_token="<unk>",
                byte_fallback=True,
                fuse_unk=True,
            )
        )
        steps = [] if form is None else [getattr(normalizers, form)()]
        steps += [normalizers.Prepend("\u2581")] if prefix else []
        made.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "\u2581")])
        made.decoder = decoders.Sequence(
            [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        made.add_special_tokens([AddedToken(name, normalized=False) for name in special])
        made.post_processor = processors.TemplateProcessing(
            single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", 2)]
        )
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=made,
            bos_token="<bos>",
            eos_token="<end_of_turn>" if template else "<eos>",
            pad_token="<pad>",
            unk_token="<unk>",
        )
        tokenizer.chat_template = template
        return tokenizer

    return make


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, make_student: MakeModel) -> Path:
    return make_student(tmp_path_factory.mktemp("tiny") / "folder")


@pytest.fixture(scope="session")
def tiny_ggufs(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> dict[str, Path]:
    """The tiny model as F16 and Q8_0 GGUF, made by llama.cpp's own converter."""
    from potstill.export.gguf import convert, quantize
    from potstill.models.load import load_tokenizer

    folder = tmp_path_factory.mktemp("gguf")
    files = {kind: folder / f"tiny-{kind}.gguf" for kind in ("f16", "q8_0", "q4_0")}
    convert(tiny_folder, files["f16"], load_tokenizer(tiny_folder), "tiny")
    quantize(files["f16"], files["q8_0"], "q8_0", 1)
    quantize(files["f16"], files["q4_0"], "q4_0", 1)
    return files
