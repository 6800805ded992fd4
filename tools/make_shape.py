"""Make the shape gpt2-mini: a small GPT-2's configuration, and a tokenizer by GPT-2's rules.

In: the sample texts that come with Potstill. Out: src/potstill/shapes/gpt2-mini/ with config.json,
tokenizer.json and tokenizer_config.json, and no weights: `fresh:gpt2-mini` draws them.
The tokenizer is a byte-level BPE that splits text before as GPT-2 does, knows every byte, and has
<|endoftext|> as its only special token. The same texts give the same bytes.

Run: python tools/make_shape.py   (after tools/make_rows.py; needs the `train` extra)
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

SOURCE = Path(__file__).parents[1] / "src" / "potstill"
FOLDER = SOURCE / "shapes" / "gpt2-mini"
END = "<|endoftext|>"
WORDS = 4096
ROWS_WEIGHT = 4  # how often the rows are read for each reading of the handbook

CONFIG = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    # Nothing is dropped: what is trained on a few thousand rows is stopped by its held-out loss.
    "attn_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    # Rows of 256 numbers, which llama.cpp's k-quantisations need.
    "n_embd": 256,
    "n_inner": None,
    "n_head": 4,
    "n_layer": 6,
    "n_positions": 512,
    "tie_word_embeddings": True,
}


def texts() -> Iterator[str]:
    """What the tokenizer is trained on."""
    yield (SOURCE / "sample" / "handbook.md").read_text("utf-8")
    with (SOURCE / "sample" / "final_qa.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.reader(file):
            for _ in range(ROWS_WEIGHT):
                yield f"Question: {row[0]}\nAnswer: {' '.join(row[1:])}"


def tokenizer() -> Tokenizer:
    """The trained tokenizer."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(texts(), trainer)
    return made


def write() -> None:
    """Write the three files."""
    made = tokenizer()
    end, size = made.token_to_id(END), made.get_vocab_size()
    FOLDER.mkdir(parents=True, exist_ok=True)
    made.save(str(FOLDER / "tokenizer.json"), pretty=False)
    config = {**CONFIG, "vocab_size": size, "bos_token_id": end, "eos_token_id": end}
    named = {
        "tokenizer_class": "GPT2Tokenizer",
        "add_prefix_space": False,
        "bos_token": END,
        "eos_token": END,
        "unk_token": END,
        "model_max_length": CONFIG["n_positions"],
    }
    for name, value in (("config.json", config), ("tokenizer_config.json", named)):
        (FOLDER / name).write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", "utf-8")
    print(f"{FOLDER}: {size} words")


if __name__ == "__main__":
    write()
