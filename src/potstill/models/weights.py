"""A model's tensors, read one by one from its safetensors files.

In: a Hugging Face folder, the model without weights. Out: tensors by their names in the model, in
the type that is wanted. Holds no weights itself, and maps no file: mapped pages would count as
memory of the process.
What is refused: missing shards, files that are cut short, pickle files, tensors that do not fit.
Knows nothing of what the tensors mean.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from potstill.core.files import disk_errors, read_json
from potstill.errors import ModelError

TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "BOOL": torch.bool,
}
"""Of safetensors' headers; those that quantised weights are stored in are left out."""


class WeightFiles:
    """The files that transformers would load, and where in them each tensor of a model lies.

    transformers' own rules say under which other names a tensor may be stored, and which stored
    ones (experts) are put together.
    """

    def __init__(self, folder: Path, model: Any) -> None:
        """model: whole, though without weights. Errors: ModelError for missing shards or files
        that are cut short."""
        self.folder, self.model = folder, model
        self.places: dict[str, _Place] = {}
        for file in weight_files(folder):
            self.places.update(_places(file))
        self.sources: dict[str, list[tuple[str, str | None]]] = defaultdict(list)
        """Of each tensor of the model: what it is stored as, and the converter's pattern."""
        self.spare: list[str] = []
        """What is stored and not used as it is."""
        transforms = get_model_conversion_mapping(model)
        # Those with several results are left out: what they give is known only when they are run.
        self.converters = {
            pattern: one
            for one in transforms
            if isinstance(one, WeightConverter) and len(one.target_patterns) == 1
            for pattern in one.source_patterns
        }
        self._assign([one for one in transforms if isinstance(one, WeightRenaming)])

    def has(self, name: str) -> bool:
        """Whether a tensor of the model is stored."""
        return name in self.sources

    def check(self, wanted: Mapping[str, Tensor]) -> None:
        """Errors: ModelError if a tensor is missing or of another shape."""
        check_weights_fill(self.folder, "missing", [n for n in wanted if not self.has(n)])
        other = [
            name
            for name, tensor in wanted.items()
            for stored, pattern in self.sources[name]
            if pattern is None and self.places[stored].shape != tuple(tensor.shape)
        ]
        check_weights_fill(self.folder, "mismatched", other)

    def read(self, targets: Mapping[str, Tensor]) -> None:
        """Copy tensors of the model into `targets`, by name, as loading would convert them."""
        for name, target in targets.items():
            place = self._alike(name, target)
            if place is not None:
                with place.opened() as content:
                    place.fill(content, target, 0)
                continue
            found = self._whole(name, target.dtype)
            if found.shape != target.shape:
                check_weights_fill(self.folder, "mismatched", [name])
            target.copy_(found)

    def rows(self, name: str, numbers: Tensor, dtype: torch.dtype) -> Tensor:
        """Some rows [N, d] of a matrix, of which no more is read than they need."""
        ((stored, _),) = self.sources[name]
        place = self.places[stored]
        found = torch.empty(len(numbers), place.shape[1], dtype=place.dtype)
        with place.opened() as content:
            for row, number in zip(found, numbers.tolist(), strict=True):
                place.fill(content, row, number * row.nbytes)
        return _in_fp32(found).to(dtype)

    def equal(self, name: str, other: str) -> bool:
        """Whether two tensors are stored as the same values."""
        ((one, _),), ((two, _),) = self.sources[name], self.sources[other]
        first, second = self.places[one], self.places[two]
        return first.dtype == second.dtype and torch.equal(first.read(), second.read())

    def _assign(self, renamings: Sequence[WeightRenaming]) -> None:
        state, prefix = self.model.state_dict(), self.model.base_model_prefix
        converters = list({id(one): one for one in self.converters.values()}.values())
        for stored in sorted(self.places, key=dot_natural_key):  # experts by their numbers
            name, pattern = rename_source_key(stored, renamings, converters, prefix, state)
            if name not in state and stored in state:
                name, pattern = rename_source_key(stored, [], [], prefix, state)
            if name in state:
                self.sources[name].append((stored, pattern))
            else:
                self.spare.append(stored)

    def _alike(self, name: str, target: Tensor) -> _Place | None:
        """Where the very bytes of the target lie; None: they are made of what is stored."""
        (stored, pattern), *others = self.sources[name]
        place = self.places[stored]
        same = place.dtype == target.dtype and place.shape == tuple(target.shape)
        plain = pattern is None and not others
        here = target.device.type == "cpu" and target.is_contiguous()
        return place if plain and same and here else None

    def _whole(self, name: str, dtype: torch.dtype) -> Tensor:
        """What stored tensors give together. Converters only move numbers, so that rounding them
        before is rounding them after."""
        sources = self.sources[name]
        first = sources[0][1]
        if first is None:
            return _in_fp32(self.places[sources[0][0]].read())
        converter = deepcopy(self.converters[first])
        for stored, pattern in sources:
            assert pattern is not None
            part = _in_fp32(self.places[stored].read()).to(dtype)
            converter.add_tensor(name, stored, pattern, lambda part=part: part)
        found = converter.convert(name, model=self.model, config=self.model.config)[name]
        tensor: Tensor = found[0] if isinstance(found, list) else found
        return tensor


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    """Its first byte in the file."""

    def read(self) -> Tensor:
        """All of it."""
        found = torch.empty(self.shape, dtype=self.dtype)
        with self.opened() as content:
            self.fill(content, found, 0)
        return found

    @contextmanager
    def opened(self) -> Iterator[FileIO]:
        """The file, unbuffered: rows are smaller than a buffer, layers larger."""
        with disk_errors(self.file, "read"), FileIO(self.file) as content:
            yield content

    def fill(self, content: FileIO, target: Tensor, offset: int) -> None:
        """Read into a tensor, from a byte of this one."""
        content.seek(self.start + offset)
        memory: Any = target.view(-1).view(torch.uint8).numpy()
        left = memoryview(memory)
        while left:
            count = content.readinto(left)
            if not count:
                raise ModelError(f"{self.file} became shorter while it was read.")
            left = left[count:]


def _places(file: Path) -> dict[str, _Place]:
    """Of every tensor of a file, from its header."""
    with opened(file), file.open("rb") as content:  # safetensors checks it all
        size = int.from_bytes(content.read(8), "little")
        header = json.loads(content.read(size))
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        if entry["dtype"] not in TYPES:
            raise ModelError(
                f"{name} in {file} is stored as {entry['dtype']}, which is not read layer by layer."
            )
        start = 8 + size + entry["data_offsets"][0]
        found[name] = _Place(file, TYPES[entry["dtype"]], tuple(entry["shape"]), start)
    return found


def _in_fp32(tensor: Tensor) -> Tensor:
    """A resident model passes through fp32, so that a float64 is rounded twice; others are not."""
    return tensor.to(torch.float32) if tensor.dtype == torch.float64 else tensor


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers would load: a single one before an index's shards.

    Errors: ModelError if one is missing or there is none.
    """
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(read_json(index)["weight_map"].values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ModelError(f"The folder {folder} lacks {missing[0]}, which its index names.")
        return [folder / name for name in names]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt"))
        hint = (
            "Its weights are pickle files, which can run code and are not loaded; save them as "
            "safetensors with transformers' save_pretrained."
            if pickles
            else "An interrupted download leaves such a folder; fetch it again."
        )
        raise ModelError(f"The folder {folder} has no safetensors file.", hint)
    return files


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A safetensors file, mapped. Errors: ModelError if it is not whole."""
    try:
        with safe_open(path, framework="pt") as content:
            yield content
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path} is not a whole safetensors file: {first_line(error)}",
            "It may have been cut short while it was copied; fetch or make it again.",
        ) from error


def check_weights_fill(folder: Path, kind: str, names: Sequence[str]) -> None:
    """Errors: ModelError if there are tensors that the files lack or hold in another shape."""
    if names:
        raise ModelError(
            f"The weights in {folder} do not fill the model: {kind} "
            f"{', '.join(sorted(names)[:3])}{' …' if len(names) > 3 else ''}.",
            "They would be random numbers. Use a complete folder.",
        )


def first_line(error: BaseException) -> str:
    """What kind of error it is, and the first line of what it says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
