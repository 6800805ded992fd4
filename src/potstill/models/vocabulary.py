"""A model's vocabulary, without loading anything that is heavy: for checks before a run begins.

In: a reference. Out: token -> id, or None if the tokenizer is not on this disk yet; whether it can
be cut. Imports no torch.
"""

from __future__ import annotations

import json
from typing import Any

from potstill.models.refs import folder_here, parse


def vocabulary_of(source: str) -> dict[str, int] | None:
    """The tokens of `tokenizer.json`, those that were added included.

    None: it is to be fetched or converted first, or has another form than a table of tokens.
    Errors: ModelError for a reference that names nothing.
    """
    state = _tokenizer(source)
    try:
        known = state["model"]["vocab"]
        added = {one["content"]: int(one["id"]) for one in state["added_tokens"]}
    except (ValueError, KeyError, TypeError):
        return None  # whoever loads it says what is wrong
    if isinstance(known, list):  # Unigram: pieces with their scores, in the order of ids
        known = {piece: number for number, (piece, _) in enumerate(known)}
    return {**known, **added}


def is_of_byte_pairs(source: str) -> bool:
    """Whether the tokenizer is known to be of byte pairs (BPE), whose vocabulary can be cut.

    Errors: ModelError for a reference that names nothing.
    """
    model = _tokenizer(source).get("model")
    return isinstance(model, dict) and model.get("type") == "BPE"


def _tokenizer(source: str) -> dict[str, Any]:
    """`tokenizer.json`; empty if it is not here or cannot be read: whoever loads it says why."""
    folder = folder_here(parse(source))
    try:
        state = json.loads((folder / "tokenizer.json").read_text("utf-8")) if folder else {}
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}
