"""A model and its tokenizer as a Hugging Face folder, there whole or not at all.

In: a model, a tokenizer, a folder. Out: safetensors, configuration, tokenizer files. Knows nothing
of training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from potstill.core.files import whole_folder
from potstill.models.load import quiet


def save_model(model: Any, tokenizer: Any, target: Path) -> None:
    """Write the folder in the model's own type; one that is there already is left as it is.

    Written beside and renamed, so that a kill leaves no half of it. Errors: PotstillError for a
    disk that is full or read-only.
    """
    if target.is_dir():
        return
    model.config.use_cache = True  # training switched it off
    with whole_folder(target) as part, quiet():
        model.to("cpu").save_pretrained(part)
        tokenizer.save_pretrained(part)
