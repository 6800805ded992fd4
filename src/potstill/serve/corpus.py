"""The passages that answers come from: the run's own, and documents that are added meanwhile.

In: chunks, questions, files. Out: passages with where they stand, for citations. An added document
is on the disk before it is acknowledged, and there again after a restart; one that is removed is
found no more, and what a kill left of it is cleared away at the next start. How a file is read is
the caller's affair (`ReadDocument`): the checks of ingest, in a process of its own.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.core.files import (
    disk_errors,
    file_digest,
    fsync_folder,
    read_json,
    read_records,
    whole_folder,
    write_json,
    write_records,
)
from potstill.records import Chunk
from potstill.serve.retrieval import PassageIndex

ReadDocument = Callable[[Path, str, Path], list[Chunk]]
"""(file, its name, a folder to work in) -> its chunks. Errors: InputError says why it cannot be
used."""


@dataclass(frozen=True)
class Added:
    """A document that was added."""

    id: str
    name: str
    passages: int
    new: bool
    """False: the same content was there already."""

    @property
    def as_dict(self) -> dict[str, Any]:
        """For the response."""
        return {
            "id": self.id,
            "object": "document",
            "name": self.name,
            "passages": self.passages,
            "new": self.new,
        }


class Corpus:
    """Passages in memory, added documents below `folder`.

    encoder: a model reference for searching by meaning too; None: by words alone.
    Errors: ModelError for the encoder, StoreError for a damaged folder.
    """

    def __init__(
        self,
        chunks: Iterable[Chunk],
        folder: Path,
        read: ReadDocument,
        encoder: str | None = None,
    ) -> None:
        self.folder = folder
        self._read = read
        self._one_at_a_time = asyncio.Lock()
        self._added: dict[str, Added] = {}
        self._numbers: dict[str, range] = {}
        found = list(chunks)
        for place in sorted(folder.glob("*/document.json")):
            if place.parent.suffix == ".part":  # a kill left it: half added, or half removed
                shutil.rmtree(place.parent, ignore_errors=True)
                continue
            about = read_json(place)
            rows = list(read_records(place.with_name("chunks.jsonl"), Chunk))
            self._added[about["id"]] = Added(about["id"], about["name"], len(rows), False)
            self._numbers[about["id"]] = range(len(found), len(found) + len(rows))
            found += rows
        self.index = PassageIndex(found, encoder, folder.parent / "vectors")

    def __len__(self) -> int:
        return len(self.index)

    @property
    def documents(self) -> list[Added]:
        """What was added, in no order that matters."""
        return list(self._added.values())

    def document(self, identity: str) -> Added | None:
        """An added document; None if there is none of that id."""
        return self._added.get(identity)

    async def search(self, question: str) -> Chunk | None:
        """The best passage; None if nothing fits. Runs beside the event loop."""
        found = await self.best(question, 1)
        return found[0] if found else None

    async def best(self, question: str, limit: int) -> list[Chunk]:
        """The best passages, the best first. Runs beside the event loop."""
        return await asyncio.to_thread(self.index.search, question, limit)

    async def add(self, file: Path, name: str) -> Added:
        """Read a file and make its passages findable; the file is moved into the corpus.

        Errors: InputError if it cannot be used, StoreError if the disk refuses.
        """
        async with self._one_at_a_time:
            return await asyncio.to_thread(self._add, file, name)

    async def remove(self, identity: str) -> Added | None:
        """Take an added document away, from search and from the disk; None if there is none.

        Errors: StoreError if the disk refuses; it is there as before then.
        """
        async with self._one_at_a_time:
            return await asyncio.to_thread(self._remove, identity)

    def _remove(self, identity: str) -> Added | None:
        added = self._added.get(identity)
        if added is None:
            return None
        folder = self.folder / identity
        gone = folder.with_name(f"{identity}.part")  # a start does not look into it
        with disk_errors(folder, "remove"):
            shutil.rmtree(gone, ignore_errors=True)
            folder.replace(gone)
            fsync_folder(self.folder)
        del self._added[identity]
        self.index.remove(self._numbers.pop(identity))
        shutil.rmtree(gone, ignore_errors=True)
        return added

    def _add(self, file: Path, name: str) -> Added:
        identity = file_digest(file)[:16]
        if identity in self._added:
            return self._added[identity]
        target = self.folder / identity
        with disk_errors(self.folder, "write to"):
            self.folder.mkdir(parents=True, exist_ok=True)
        work = self.folder / f".{identity}.work"
        try:
            chunks = self._read(file, name, work)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        with whole_folder(target) as folder:
            shutil.copyfile(file, folder / f"source{file.suffix}")
            write_records(folder / "chunks.jsonl", chunks)
            write_json(folder / "document.json", {"id": identity, "name": name})
        fsync_folder(self.folder)
        self._numbers[identity] = self.index.add(chunks)
        added = Added(identity, name, len(chunks), True)
        self._added[identity] = Added(identity, name, len(chunks), False)
        return added


def citation(passage: Chunk, answer: str) -> dict[str, Any]:
    """Where an answer comes from. `start` and `end` are the passage's characters in the document's
    text; `answer_start` and `answer_end` those of the answer, where it stands there word for word,
    else null."""
    said = answer.strip()
    place = passage.text.find(said) if said else -1
    inside = place >= 0
    return {
        "source": passage.source,
        "pages": list(passage.pages),
        "document": passage.document,
        "chunk": passage.id,
        "start": passage.start,
        "end": passage.end,
        "answer_start": passage.start + place if inside else None,
        "answer_end": passage.start + place + len(said) if inside else None,
        "text": passage.text,
    }
