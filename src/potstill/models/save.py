"""A model and its tokenizer as a Hugging Face folder, there whole or not at all.

In: a model, a tokenizer, a folder. Out: safetensors, configuration, tokenizer files. Knows nothing
of training.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from potstill.core.files import disk_errors
from potstill.models.load import quiet


def save_model(model: Any, tokenizer: Any, target: Path) -> None:
    """Write the folder in the model's own type; one that is there already is left as it is.

    Written beside and renamed, so that a kill leaves no half of it. Errors: PotstillError for a
    disk that is full or read-only.
    """
    if target.is_dir():
        return
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    model.config.use_cache = True  # training switched it off
    with disk_errors(target, "write"), quiet():
        target.parent.mkdir(parents=True, exist_ok=True)
        model.to("cpu").save_pretrained(part)
        tokenizer.save_pretrained(part)
        os.replace(part, target)
