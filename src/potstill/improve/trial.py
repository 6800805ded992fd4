"""What a run's live traffic says of two versions: read from the service's own files.

In: a run whose service gave a candidate a share. Out: the comparison of `evaluate/trials.py`.
Starts nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from potstill.errors import InputError
from potstill.evaluate.trials import compare_versions
from potstill.pipeline import Run
from potstill.serve.feedback import read_feedback
from potstill.serve.trial import FILE

NOT_FAILED = ("ok", "abandoned")


def compare_traffic(this: Run, candidate: str | None = None, level: float = 0.95) -> dict[str, Any]:
    """Votes, latency, tokens and refusals of a candidate and the version that served beside it.

    candidate: default: the last one that got a share. A request counts for the version that it was
    assigned to; where the candidate failed that is counted as such. A vote counts for the version
    that gave the answer. Errors: InputError where no candidate got a share.
    """
    folder = this.folder / "serve"
    rows = [
        row
        for row in _rows(folder)
        if candidate in (None, row["candidate"]) and row["candidate"] != row["current"]
    ]
    if not rows:
        beside = f"The candidate {candidate}" if candidate else "No candidate"
        negated = "has got no share" if candidate else "has got a share"
        raise InputError(
            f"{beside} {negated} of the requests to {this.folder.name} yet.",
            f"Give one a share: potstill serve {this.folder.name} --candidate RUN --share 0.1",
        )
    pair = (rows[-1]["current"], rows[-1]["candidate"])
    rows = [row for row in rows if (row["current"], row["candidate"]) == pair]
    requests = [
        {
            "version": row["assigned"],
            "unit": row["unit"],
            "first_token_seconds": row["first_token_seconds"],
            "seconds": row["seconds"] if row["outcome"] == "ok" else None,
            "completion_tokens": row["completion_tokens"] if row["outcome"] == "ok" else None,
            "refused": row["refused"] if row["outcome"] == "ok" else None,
            "failed": row["outcome"] not in NOT_FAILED or row["variant"] != row["assigned"],
        }
        for row in rows
    ]
    answered = {row["response"]: row for row in rows}
    votes = [
        {
            "version": answered[said["response"]]["variant"],
            "unit": answered[said["response"]]["unit"],
            "up": said["thumb"] == "up",
        }
        for said in _last_votes(folder)
        if said["response"] in answered
    ]
    return compare_versions(requests, votes, *pair, seed=int(this.record["seed"]), level=level)


def _last_votes(folder: Path) -> list[dict[str, Any]]:
    """One vote an answer: the last one."""
    said = read_feedback(folder / "feedback.sqlite")
    return list({row["response"]: row for row in said if row["thumb"]}.values())


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    """The service's account; a line that a kill left half is passed over."""
    for path in (folder / FILE.replace(".jsonl", ".old.jsonl"), folder / FILE):
        if not path.exists():
            continue
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                if isinstance(row, dict) and row.get("event") == "request":
                    yield row
