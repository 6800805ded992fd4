"""A `tokenizer.model` for llama.cpp's converter, where a model has only its `tokenizer.json`.

In: the folder of a model whose tokenizer makes pieces with a sign for spaces and bytes for what
no piece has (Gemma, Phi-3, Llama 2). Out: the bytes of a SentencePiece model with the same
pieces; None for every other kind of tokenizer. Knows nothing of weights.

The converter reads such vocabularies from `tokenizer.model` alone, which newer folders and
dequantised GGUFs do not have. In a SentencePiece BPE model the pair that makes the piece of the
highest score is merged first; in `tokenizer.json` the pair that stands first in the list of
merges is. So a piece's score is minus the place of the first merge that makes it. Whether the two
read text alike is compared afterwards, as for every file. Format: sentencepiece_model.proto of
google/sentencepiece.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

SPACE = "\u2581"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
BPE = 2
STRINGS = 2
"""Protocol buffers' wire type of strings and messages."""


def sentencepiece_model(folder: Path) -> tuple[bytes, bool] | None:
    """The model's bytes, and whether a space is put before a text.

    None if the folder has such a file, or a tokenizer of another kind.
    """
    file = folder / "tokenizer.json"
    if (folder / "tokenizer.model").is_file() or not file.is_file():
        return None
    state = json.loads(file.read_text("utf-8"))
    core = state["model"]
    steps = _steps(state.get("normalizer"))
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    if core.get("type") != "BPE" or not core.get("byte_fallback") or spaces not in steps:
        return None
    pieces = {number: piece for piece, number in core["vocab"].items()}
    kinds = {number: BYTE for number, piece in pieces.items() if _is_byte(piece)}
    for token in state.get("added_tokens", ()):
        pieces[token["id"]] = token["content"]
        kinds[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    unknown = core["vocab"].get(core.get("unk_token"))
    if unknown is None:
        return None
    kinds[unknown] = UNKNOWN
    scores = _scores(core)
    spoken = [
        _piece(pieces.get(n, f"[PAD{n}]"), scores.get(n, 0.0), kinds.get(n, NORMAL))
        for n in range(max(pieces) + 1)
    ]
    prefixed = {"type": "Prepend", "prepend": SPACE} in steps
    trainer = _number(3, BPE) + _number(35, 1) + _number(40, unknown)
    # No piece begins or ends a text, or fills it, by its number here: -1 is none.
    trainer += b"".join(_number(field, -1) for field in (41, 42, 43))
    normalizer = _text(1, b"identity") + _number(3, int(prefixed)) + _number(4, 0) + _number(5, 1)
    return b"".join(spoken) + _text(2, trainer) + _text(3, normalizer), prefixed


def words_of_their_own(folder: Path) -> dict[str, int]:
    """Added tokens that are no control tokens (Gemma's `<a>`, runs of spaces) -> their ids.

    The converter takes them for ordinary pieces unless `added_tokens.json` names them.
    """
    state = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    added = state.get("added_tokens", ())
    return {token["content"]: token["id"] for token in added if not token["special"]}


def _steps(normalizer: Any) -> list[Any]:
    if not normalizer:
        return []
    found = normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]
    return list(found)


def _is_byte(piece: str) -> bool:
    return len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")


def _scores(core: dict[str, Any]) -> dict[int, float]:
    """Minus the place of the first merge that makes a piece; what no merge makes comes last."""
    made: dict[str, int] = {}
    for place, pair in enumerate(core["merges"]):
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        made.setdefault(left + right, place)
    last = len(core["merges"])
    return {number: -float(made.get(piece, last)) for piece, number in core["vocab"].items()}


def _piece(piece: str, score: float, kind: int) -> bytes:
    body = _text(1, piece.encode()) + bytes([2 << 3 | 5]) + struct.pack("<f", score)
    return _text(1, body + _number(3, kind))


def _text(field: int, body: bytes) -> bytes:
    return _varint(field << 3 | STRINGS) + _varint(len(body)) + body


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value & (1 << 64) - 1)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])
