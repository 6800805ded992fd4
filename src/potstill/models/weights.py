"""A model's tensors, read one by one from its safetensors files.

In: a Hugging Face folder. Out: tensors by their names in the model, in the type that is wanted.
Holds no weights itself; what was read of a file is unmapped again when the file is closed.
What is refused: missing shards, files that are cut short, pickle files, tensors that do not fit.
Knows nothing of what the tensors mean.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from potstill.core.files import read_json
from potstill.errors import ModelError


class WeightFiles:
    """The files that transformers would load, and where in them each tensor of a model lies."""

    def __init__(self, folder: Path, prefix: str = "model.") -> None:
        """prefix: what files of a bare decoder leave out at the beginning of its names.

        Errors: ModelError for missing shards or files that are cut short.
        """
        single = folder / "model.safetensors"
        files = [single] if single.is_file() else weight_files(folder)
        self.folder, self.prefix = folder, prefix
        self.file_of: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for file in files:
            with opened(file) as content:
                for name in content.keys():  # noqa: SIM118
                    self.file_of[name] = file
                    self.shapes[name] = tuple(content.get_slice(name).get_shape())

    def stored(self, name: str) -> str | None:
        """The name under which a tensor of the model is stored; None: it is not."""
        for known in (name, name.removeprefix(self.prefix)):
            if known in self.file_of:
                return known
        return None

    def check(self, wanted: Mapping[str, Tensor]) -> None:
        """Errors: ModelError if a tensor is missing or of another shape."""
        missing = [name for name in wanted if self.stored(name) is None]
        check_weights_fill(self.folder, "missing", missing)
        other = [
            name
            for name, tensor in wanted.items()
            if self.shapes[self.stored(name) or name] != tuple(tensor.shape)
        ]
        check_weights_fill(self.folder, "mismatched", other)

    def read(self, targets: Mapping[str, Tensor]) -> None:
        """Copy tensors of the model into `targets`, by name, as loading would convert them."""
        by_file: dict[Path, list[str]] = defaultdict(list)
        for name in targets:
            by_file[self._file(name)].append(name)
        for file, names in by_file.items():
            with opened(file) as content:
                for name in names:
                    targets[name].copy_(_in_fp32(content.get_tensor(self.stored(name))))

    def rows(self, name: str, numbers: Tensor, dtype: torch.dtype) -> Tensor:
        """Some rows [N, d] of a matrix, of which no more is read than they need."""
        with opened(self._file(name)) as content:
            table: Tensor = content.get_tensor(self.stored(name))  # mapped, not read
            return _in_fp32(table[numbers.cpu()]).to(dtype)

    def equal(self, name: str, other: str) -> bool:
        """Whether two tensors hold the same values."""
        with opened(self._file(name)) as one, opened(self._file(other)) as two:
            first, second = one.get_tensor(self.stored(name)), two.get_tensor(self.stored(other))
            return first.dtype == second.dtype and torch.equal(first, second)

    def bytes_of(self, names: Iterable[str], item: int) -> int:
        """Of these tensors, `item` bytes a number."""
        return sum(
            item * torch.Size(self.shapes[stored]).numel()
            for name in names
            if (stored := self.stored(name)) is not None
        )

    def _file(self, name: str) -> Path:
        return self.file_of[self.stored(name) or name]


def _in_fp32(tensor: Tensor) -> Tensor:
    """A resident model passes through fp32, so that a float64 is rounded twice; others are not."""
    return tensor.to(torch.float32) if tensor.dtype == torch.float64 else tensor


def weight_files(folder: Path) -> list[Path]:
    """The folder's safetensors files. Errors: ModelError if one is missing or there is none."""
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
