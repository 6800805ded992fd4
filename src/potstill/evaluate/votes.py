"""The file of a person's votes on two answers.

In: a path, a vote. Out: all votes of the file, which is written whole or not at all. Light: no
torch. Knows nothing of what they come to (`judge.py`).
"""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock

from potstill.core.files import disk_errors, read_records, write_records
from potstill.evaluate.judge import Vote


def read_votes(path: Path) -> list[Vote]:
    """Votes of a model or of a person. Errors: InputError names the file and the line."""
    with disk_errors(path, "read"):
        return list(read_records(path, Vote))


def add_vote(path: Path, vote: Vote) -> list[Vote]:
    """Keep a person's vote among those of the file; all of them. Errors: InputError, StoreError."""
    with disk_errors(path.parent, "create"):
        path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        votes = [*(read_votes(path) if path.exists() else ()), vote]
        with disk_errors(path, "write"):
            write_records(path, votes)
    return votes
