"""Records of bytes in shards on disk: written as they come, resumable, read through mmap.

In: an identity, and records in blocks. Out: the records again, by their number. Knows nothing of
tensors, teachers or rows.

    key.json           what the records belong to; written first
    shard-00000.bin    records, one after another; a new shard begins after about 256 MB
    records.bin        one entry a record: shard, offset, length, checksum
    index.json         sizes and digests of all of it; written last: without it nothing is finished

A block's records are on disk before its entries are written. After a kill, every record is held
against its entry, what follows the last whole block is cut off, and the rest comes out as if
nothing had happened. A reader checks sizes and digests when it opens a cache, and a record's
checksum whenever it reads it, so a damaged one gives an error and never other numbers.
"""

from __future__ import annotations

import mmap
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from potstill.core.files import disk_errors, file_digest, fsync_folder, read_json, write_json
from potstill.errors import StoreError

SHARD_BYTES = 256 << 20
SHARDS = f"shard-{'[0-9]' * 5}.bin"
VERSION = 2
ENTRY = np.dtype([("shard", "<u4"), ("length", "<u4"), ("offset", "<u8"), ("check", "<u4")])
AGAIN = "Delete the folder; they are computed again."


class ShardWriter:
    """Writes blocks of records; goes on after the last whole block that is there already."""

    def __init__(self, folder: Path, identity: Mapping[str, Any], blocks: Sequence[int]) -> None:
        """blocks: how many records each block has. What belongs to another identity is removed."""
        self.folder, self.blocks = folder, blocks
        self.done = self.shard = self.offset = 0
        """Blocks that are finished, and where the next record goes."""
        with disk_errors(folder, "write"):
            folder.mkdir(parents=True, exist_ok=True)
            if not _is_key(folder, identity):
                for name in ("key.json", "records.bin", "index.json", SHARDS):
                    for file in folder.glob(name):
                        file.unlink()
            write_json(folder / "key.json", {"version": VERSION, **identity})
            self._keep_whole_blocks()

    @property
    def finished(self) -> bool:
        """Whether every block is there."""
        return self.done == len(self.blocks)

    def append(self, records: Sequence[bytes]) -> None:
        """Write the next block."""
        assert len(records) == self.blocks[self.done], "a block has another number of records"
        entries = np.zeros(len(records), ENTRY)
        at = self.offset
        for number, record in enumerate(records):
            entries[number] = (self.shard, len(record), at, zlib.crc32(record))
            at += len(record)
        shard = shard_file(self.folder, self.shard)
        for file, content in ((shard, records), (self.folder / "records.bin", [entries.tobytes()])):
            with disk_errors(file, "write"), file.open("ab") as output:
                output.writelines(content)
                output.flush()
                os.fsync(output.fileno())
        if not self.offset:
            fsync_folder(self.folder)
        self._pass_block(at)

    def finish(self) -> None:
        """Write the index: the cache is complete."""
        assert self.finished, "blocks are missing"
        write_json(self.folder / "index.json", _summary(self.folder))

    def _pass_block(self, end: int) -> None:
        self.done += 1
        if end < SHARD_BYTES:
            self.offset = end
        else:
            self.shard, self.offset = self.shard + 1, 0

    def _keep_whole_blocks(self) -> None:
        """Find the last whole block, and cut off what follows it, whatever it is."""
        file = self.folder / "records.bin"
        content = file.read_bytes() if file.exists() else b""
        entries = np.frombuffer(content[: len(content) // ENTRY.itemsize * ENTRY.itemsize], ENTRY)
        first, ends = 0, dict[Path, int]()
        for count in self.blocks:
            block = entries[first : first + count]
            end = self._end_of(block) if len(block) == count else None
            if end is None:
                break
            first += count
            ends[shard_file(self.folder, self.shard)] = end
            self._pass_block(end)
        _cut(file, first * ENTRY.itemsize)
        for shard in self.folder.glob(SHARDS):
            _cut(shard, ends.get(shard, 0))

    def _end_of(self, block: Any) -> int | None:
        """Where the shard goes on after this block; None if a record is not as its entry says."""
        at = self.offset
        try:
            with shard_file(self.folder, self.shard).open("rb") as file:
                file.seek(at)
                for shard, length, offset, check in block.tolist():
                    if (shard, offset) != (self.shard, at):
                        return None
                    record = file.read(length)
                    if len(record) != length or zlib.crc32(record) != check:
                        return None
                    at += length
        except FileNotFoundError:
            return None
        return at


class Shards:
    """The records of a finished cache, read where they are."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        """Errors: StoreError if it is not finished, damaged, or another's; it says what differs."""
        self.folder = folder
        index = folder / "index.json"
        if not index.exists():
            raise StoreError(
                f"The teacher's signals in {folder} are not finished.",
                "Run the same command again with the teacher; what was computed is kept.",
            )
        with disk_errors(folder, "read"):
            try:
                whole = read_json(index) == _summary(folder)
                key = read_json(folder / "key.json")
            except (StoreError, FileNotFoundError) as error:
                raise self._damaged() from error
            if not whole or not isinstance(key, dict):
                raise self._damaged()
            _refuse_another(folder, key, identity)
            self.entries = np.memmap(folder / "records.bin", ENTRY, mode="r")
            self.maps = [_mapped(file) for file in _shard_files(folder)]

    def __len__(self) -> int:
        return len(self.entries)

    def read(self, number: int) -> bytes:
        """A record. Errors: StoreError if it is not what was written."""
        shard, length, offset, check = self.entries[number].item()
        record: bytes = self.maps[shard][offset : offset + length]
        if zlib.crc32(record) != check:
            raise self._damaged(f"Record {number} of the")
        return record

    def _damaged(self, what: str = "The") -> StoreError:
        return StoreError(f"{what} teacher's signals in {self.folder} are damaged.", AGAIN)


def shard_file(folder: Path, number: int) -> Path:
    """Path of a shard."""
    return folder / f"shard-{number:05d}.bin"


def _is_key(folder: Path, identity: Mapping[str, Any]) -> bool:
    """Whether the folder says that it belongs to this identity."""
    try:
        return bool(read_json(folder / "key.json") == {"version": VERSION, **identity})
    except (StoreError, FileNotFoundError):
        return False


def _refuse_another(folder: Path, key: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    if key.get("version") != VERSION:
        raise StoreError(f"The teacher's signals in {folder} have another layout.", AGAIN)
    other = [name for name, value in identity.items() if key.get(name) != value]
    if other:
        raise StoreError(
            f"The teacher's signals in {folder} belong to another {' and another '.join(other)}.",
            AGAIN,
        )


def _summary(folder: Path) -> dict[str, Any]:
    """What the index says, from what is on disk."""
    return {
        "key": file_digest(folder / "key.json"),
        "entries": file_digest(folder / "records.bin"),
        "records": (folder / "records.bin").stat().st_size // ENTRY.itemsize,
        "shards": [file.stat().st_size for file in _shard_files(folder)],
    }


def _shard_files(folder: Path) -> Iterator[Path]:
    """Shards 0, 1, 2 ... as long as they are there."""
    number = 0
    while (file := shard_file(folder, number)).exists():
        yield file
        number += 1


def _mapped(file: Path) -> mmap.mmap:
    with file.open("rb") as opened:
        return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)


def _cut(file: Path, size: int) -> None:
    """Cut a file off; an empty one is removed."""
    if not size:
        file.unlink(missing_ok=True)
    elif file.stat().st_size > size:
        os.truncate(file, size)
