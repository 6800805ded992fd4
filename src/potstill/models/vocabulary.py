"""A model's vocabulary, without loading anything that is heavy: for checks before a run begins.

In: a reference. Out: token -> id, or None if the tokenizer is not on this disk yet. Imports no
torch.
"""

from __future__ import annotations

import json
from pathlib import Path

from potstill.models.cache import converted_folder
from potstill.models.refs import Reference, cached_snapshot, digest, parse


def vocabulary_of(source: str) -> dict[str, int] | None:
    """The tokens of `tokenizer.json`, those that were added included.

    None: it is to be fetched or converted first, or has another form than a table of tokens.
    Errors: ModelError for a reference that names nothing.
    """
    file = _file(parse(source))
    if file is None or not file.is_file():
        return None
    try:
        state = json.loads(file.read_text("utf-8"))
        known = state["model"]["vocab"]
        added = {one["content"]: int(one["id"]) for one in state["added_tokens"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None  # whoever loads it says what is wrong
    if isinstance(known, list):  # Unigram: pieces with their scores, in the order of ids
        known = {piece: number for number, (piece, _) in enumerate(known)}
    return {**known, **added}


def _file(reference: Reference) -> Path | None:
    if reference.kind in ("folder", "fresh"):
        return reference.path / "tokenizer.json" if reference.path else None
    if reference.kind == "hub":
        cached = cached_snapshot(reference)
        return cached and cached / "tokenizer.json"
    return converted_folder(digest(reference)) / "tokenizer.json"
