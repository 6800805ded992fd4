"""The models that an evaluation is of, and what each takes on disk.

In: the teacher's reference, the results of correction and distillation. Out: `Source`s, the
teacher first. Loads no weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from potstill.core.stage import Artifact
from potstill.errors import ModelError
from potstill.models.corrected import corrected
from potstill.models.load import model_folder
from potstill.models.refs import gguf_file, parse

BASELINE = "finetuned"
STUDENTS = ("undistilled", BASELINE, "distilled")


@dataclass(frozen=True)
class Source:
    """A model to be measured: its name, its folder, and what it takes on disk."""

    name: str
    folder: Path
    disk_bytes: int
    reference_bytes: int | None = None
    """Size of the file that the reference names where that is not the folder (a GGUF)."""


def models_of(teacher: str, correct: Artifact, distill: Artifact) -> list[Source]:
    """Teacher first: all others are measured against its states. `finetuned` is there where the
    recipe has a baseline.

    Errors: ModelError for a student that is not there.
    """
    used = corrected(correct, teacher)
    found = [referenced("teacher", used)]
    if used != teacher:
        found.append(referenced("uncorrected", teacher))
    for name in STUDENTS:
        folder = distill.path("models") / name
        if name == BASELINE and not folder.exists():
            continue
        if not (folder / "config.json").exists():
            raise ModelError(
                f"The distill stage left no {name} model: {folder} has no config.json.",
                "Run `potstill verify` on the run, and distill again if it is damaged.",
            )
        found.append(Source(name, folder, weights_bytes(folder)))
    return found


def referenced(name: str, text: str) -> Source:
    """The model of a reference, and the size of the file that it names."""
    reference = parse(text)
    file = gguf_file(reference)
    folder = model_folder(reference)
    return Source(name, folder, weights_bytes(folder), file.stat().st_size if file else None)


def weights_bytes(folder: Path) -> int:
    """What a folder's weights take on disk."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
