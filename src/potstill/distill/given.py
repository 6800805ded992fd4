"""Models as a `Distiller` is given them: by reference, or loaded.

In: either. Out: what identifies it, the tokenizer beside it. Knows nothing of training.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from potstill.models import refs
from potstill.models.load import load_tokenizer, model_folder


def tokenizer_of(student: Any) -> Any:
    """The tokenizer that lies beside the student, if one does."""
    if not isinstance(student, str | Path):
        return None
    return load_tokenizer(student) if (model_folder(student) / "tokenizer.json").exists() else None


def digest_of(model: Any) -> str:
    """What identifies a model: its reference's content, or its weights."""
    if model is None or isinstance(model, str | Path):
        return "" if model is None else refs.digest(refs.parse(model))
    hashed = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        hashed.update(name.encode())
        hashed.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return hashed.hexdigest()
