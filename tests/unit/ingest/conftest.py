"""Small files of every kind, and one way to run the stage over them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from potstill.core.events import Emitter, read_events
from potstill.core.stage import Context, Draft
from potstill.ingest import IngestConfig
from potstill.ingest.one import NAMES, OnSign, Task, read_one
from potstill.ingest.run import ingest
from potstill.ingest.seen import SeenPages


def count_words(text: str) -> int:
    """A stand-in for a tokenizer: words and marks."""
    return len(re.findall(r"\w+|[^\w\s]", text))


@dataclass
class DeskHere:
    """Reads files in this process, so that a test can put things in its way."""

    config: IngestConfig
    work: Path

    def __post_init__(self) -> None:
        self.pages = SeenPages(self.config, self.work / "ocr", 1)

    def start(self, task: Task) -> None:
        pass

    def wait(self, task: Task, on_sign: OnSign) -> Path:
        return read_one(task, self.config, count_words, self.work, self.pages, on_sign)


@dataclass
class Outcome:
    """What a run of the stage left behind."""

    documents: list[dict[str, Any]]
    chunks: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    contexts: list[dict[str, Any]]
    rejected: list[dict[str, Any]]
    events: list[dict[str, Any]]
    folder: Path

    @property
    def reasons(self) -> list[str]:
        return [row["reason"] for row in self.rejected]


Ingest = Callable[..., Outcome]


@pytest.fixture
def run_ingest(tmp_path: Path) -> Ingest:
    """Run the stage over `tmp_path`/project; keyword arguments are config fields."""
    project = tmp_path / "project"
    project.mkdir(exist_ok=True)

    def run(*sources: str, draft: str = "draft", **fields: Any) -> Outcome:
        folder = tmp_path / draft
        for part in ("data", "work"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        diary = folder / "events.jsonl"
        context = Context(project, tmp_path, 0, 1, Emitter(diary, "ingest"))
        fields = {"chunk_tokens": 64, "overlap_tokens": 0, "min_chunk_tokens": 4, **fields}
        config = IngestConfig(sources=list(sources), **fields)
        try:
            ingest(config, Draft(folder), context, DeskHere(config, folder / "work"))
        finally:
            run.events = read_events(diary)[0]  # type: ignore[attr-defined]
        files = [
            [
                json.loads(line)
                for line in (folder / "data" / f"{name}.jsonl").read_text("utf-8").splitlines()
            ]
            for name in NAMES
        ]
        return Outcome(*files, events=run.events, folder=folder)  # type: ignore[attr-defined]

    return run


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir(exist_ok=True)
    return folder
