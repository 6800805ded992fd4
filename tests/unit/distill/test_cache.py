"""Shards on disk, as plain bytes: blocks, shards, what is cut off, what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from potstill.distill.cache import Shards, ShardWriter
from potstill.errors import StoreError

IDENTITY: dict[str, Any] = {"teacher": {"digest": "t"}, "format": {"kind": "plain"}}
BLOCKS = [[b"one", b"two" * 50], [b"three"], [b"4" * 1000, b"\0", b"six"], [b"seven"]]
SIZES = list(map(len, BLOCKS))
RECORDS = [record for block in BLOCKS for record in block]


def write(folder: Path, blocks: Sequence[Sequence[bytes]] = BLOCKS, finish: bool = True) -> None:
    writer = ShardWriter(folder, IDENTITY, SIZES)
    for block in blocks[writer.done :]:
        writer.append(block)
    if finish:
        writer.finish()


def test_records_come_back_by_their_number(tmp_path: Path) -> None:
    write(tmp_path)
    shards = Shards(tmp_path, IDENTITY)
    assert [shards.read(number) for number in range(len(shards))] == RECORDS
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["index.json", "key.json", "records.bin", "shard-00000.bin"]


def test_a_shard_ends_with_the_block_that_fills_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("potstill.distill.cache.SHARD_BYTES", 100)
    write(tmp_path)
    sizes = [file.stat().st_size for file in sorted(tmp_path.glob("shard-*"))]
    assert sizes == [153, 5 + 1004, 5]
    shards = Shards(tmp_path, IDENTITY)
    assert [shards.read(number) for number in range(len(shards))] == RECORDS


@pytest.mark.parametrize("done", range(len(BLOCKS) + 1))
@pytest.mark.parametrize("shard_bytes", [1, 1 << 20])
def test_a_writer_goes_on_after_the_last_whole_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: int, shard_bytes: int
) -> None:
    monkeypatch.setattr("potstill.distill.cache.SHARD_BYTES", shard_bytes)
    write(tmp_path / "whole")
    write(tmp_path / "part", BLOCKS[:done], finish=False)
    assert ShardWriter(tmp_path / "part", IDENTITY, SIZES).done == done
    for file in [*(tmp_path / "part").glob("shard-*"), tmp_path / "part" / "records.bin"]:
        with file.open("ab") as output:
            output.write(b"torn")
    (tmp_path / "part" / "shard-00007.bin").write_bytes(b"torn")
    write(tmp_path / "part")
    whole, part = (
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()}
        for name in ("whole", "part")
    )
    assert part == whole


def test_a_damaged_record_is_told_only_when_it_is_read(tmp_path: Path) -> None:
    write(tmp_path)
    content = bytearray((tmp_path / "shard-00000.bin").read_bytes())
    content[0] ^= 1
    (tmp_path / "shard-00000.bin").write_bytes(content)
    shards = Shards(tmp_path, IDENTITY)
    assert shards.read(1) == BLOCKS[0][1]
    with pytest.raises(StoreError, match="Record 0 of the teacher's signals"):
        shards.read(0)


def test_files_of_others_stay(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    write(tmp_path, BLOCKS[:1], finish=False)
    ShardWriter(tmp_path, {**IDENTITY, "teacher": {"digest": "u"}}, SIZES)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["key.json", "notes.txt"]


def test_another_layout_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    monkeypatch.setattr("potstill.distill.cache.VERSION", 3)
    with pytest.raises(StoreError, match="another layout"):
        Shards(tmp_path, IDENTITY)


def test_a_full_disk_is_one_clear_error(tmp_path: Path, full_disk: Path) -> None:
    write(tmp_path, BLOCKS[:1], finish=False)
    writer = ShardWriter(tmp_path, IDENTITY, SIZES)
    shard = tmp_path / "shard-00000.bin"
    shard.unlink()
    shard.symlink_to(full_disk)
    with pytest.raises(StoreError, match="No space left") as caught:
        writer.append(BLOCKS[1])
    assert "what was finished is kept" in caught.value.hint
