"""The generate stage over invented chunks: its folders, its run, and what it left.

In: chunks, ready-made rows, a config, a teacher. Out: rows, rejects and the files' digests.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from potstill.core.events import Emitter
from potstill.core.files import read_records, write_records
from potstill.core.stage import Artifact, Context
from potstill.core.store import Store
from potstill.generate import GenerateConfig
from potstill.generate.run import run
from potstill.inference.base import TextModel
from potstill.records import Chunk, Example, Rejected, short_id

PLACES = ("Skerry Point", "Lower Quell", "Port Annet", "Widow Bay")
PEOPLE = ("Maud Tarrant", "Bram Oxley", "Tove Lindqvist", "Osric Penhale")


def chunk(number: int, text: str = "") -> Chunk:
    place, keeper = PLACES[number % 4], PEOPLE[(number // 4) % 4]
    text = text or (
        f"The harbour lamp number {number + 100} of {place} burns {number + 3} litres of thornoil "
        f"every night. The wooden bridge beside it was built by {keeper} in {1900 + number}.\n\n"
        f"Market day begins at {number + 5} o'clock sharp, and the warden rings the copper bell."
    )
    name = short_id("d", str(number))
    return Chunk(id=name, document="d", source="h.md", start=0, end=len(text), tokens=60, text=text)


def config(**fields: Any) -> GenerateConfig:
    return GenerateConfig(**{"teacher": "t", "backend": "fake", **fields})


class Stage:
    """Folders of one stage run, below `root`."""

    def __init__(
        self,
        root: Path,
        chunks: Sequence[Chunk],
        cache: Path | None = None,
        rows: Sequence[Example] = (),
    ) -> None:
        self.root, self.cache = root, cache or root / "cache"
        write_records(root / "ingest" / "data" / "chunks.jsonl", chunks)
        write_records(root / "ingest" / "data" / "rows.jsonl", rows)
        self.draft = Store(root / "store").draft("generate", "k")
        self.events = Emitter(root / "events.jsonl", "generate")

    def run(self, config: GenerateConfig, seed: int = 17, model: TextModel | None = None) -> None:
        @contextmanager
        def opener() -> Iterator[TextModel]:
            assert model is not None
            yield model

        context = Context(self.root, self.cache, seed, 1, self.events)
        ingest = Artifact("ingest", "k", self.root / "ingest", "x")
        run(config, {"ingest": ingest}, self.draft, context, opener if model else None)

    @property
    def examples(self) -> list[Example]:
        return list(read_records(self.draft.data / "examples.jsonl", Example))

    @property
    def rejected(self) -> list[Rejected]:
        return list(read_records(self.draft.data / "rejected.jsonl", Rejected))

    @property
    def digests(self) -> dict[str, str]:
        return {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(self.draft.data.iterdir())
        }
