"""The user's cache folder, and digests of files that are not hashed twice.

In: paths, digests. Out: `cache_folder()`, where in it a converted GGUF or a fresh model is, and
`file_sha256(path)`, remembered by path, size and time. Knows nothing of how models are made.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path

import platformdirs

from potstill.core.files import file_digest, write_atomic
from potstill.errors import StoreError

VARIABLE = "POTSTILL_CACHE"
CONVERSION = 1  # bumped when a converted GGUF would come out differently
DRAW = 1  # bumped when the weights of a fresh model would come out differently
DRAW_SEED = 17
SETTLED_SECONDS = 2.0  # a file changed later than this may change again within one clock tick


def cache_folder() -> Path:
    """Where fetched packages and converted models live: $POTSTILL_CACHE or the user's cache."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named).expanduser().absolute()
    return Path(platformdirs.user_cache_dir("potstill"))


def converted_folder(sha256: str) -> Path:
    """Where the Hugging Face folder of a GGUF with that digest is, once it is made."""
    return cache_folder() / "models" / f"{sha256[:32]}-v{CONVERSION}"


def drawn_folder(digest: str) -> Path:
    """Where the Hugging Face folder of a fresh model with that digest is, once it is made."""
    return cache_folder() / "models" / f"{digest[:32]}-fresh"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file in hex; hashed once for each path, size and modification time."""
    path = path.resolve()
    status = path.stat()
    state = {"path": str(path), "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    name = hashlib.sha256(str(path).encode()).hexdigest()[:32]
    memo = cache_folder() / "digests" / f"{name}.json"
    try:
        remembered = json.loads(memo.read_text("utf-8"))
        if {key: remembered[key] for key in state} == state:
            return str(remembered["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # never hashed before, or a damaged note: hash it now
    sha256 = file_digest(path)
    if time.time() - status.st_mtime > SETTLED_SECONDS:
        with suppress(StoreError, OSError):  # a read-only cache only costs the time to hash
            write_atomic(memo, json.dumps({**state, "sha256": sha256}) + "\n")
    return sha256
