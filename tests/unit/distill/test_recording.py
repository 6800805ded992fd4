"""Writing a cache: kills, damage, what is completed and what is refused; to the byte."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from potstill.distill.batches import Row, RowSet
from potstill.distill.families import group
from potstill.distill.objective import ActiveTokens
from potstill.distill.recording import Recorder
from potstill.distill.signals import (
    CachedTeacher,
    CacheFormat,
    LiveTeacher,
    cache_bytes,
    open_cache,
    read_cache,
)
from potstill.errors import PotstillError, StoreError, TrainingError

BF16 = CacheFormat("hidden_bf16")
SPARSE = CacheFormat("sampled", 12, 1.5, seed=5)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks of several batches, and several shards."""
    monkeypatch.setattr("potstill.distill.recording.CACHE_BATCH_TOKENS", 60)
    monkeypatch.setattr("potstill.distill.recording.BLOCK_BATCHES", 2)
    monkeypatch.setattr("potstill.distill.cache.SHARD_BYTES", 4000)


def quiet(done: int, of: int) -> None:
    pass


def apart(rows: Sequence[Row]) -> RowSet:
    return RowSet.apart(rows)


def in_families(rows: Sequence[Row]) -> RowSet:
    return RowSet(rows, group([row.ids for row in rows], computed=1000, in_full=5000))


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def read_all(cached: CachedTeacher, data: RowSet) -> None:
    for family in data.families:
        cached.tokens(data.rows, data.collate([family], ActiveTokens("all", None), 0))


@pytest.mark.parametrize("layout", [apart, in_families])
def test_a_killed_run_goes_on_to_the_same_bytes(
    rows: list[Row],
    build: Callable[..., CachedTeacher],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    small_blocks: None,
    format: CacheFormat,
    layout: Callable[[list[Row]], RowSet],
) -> None:
    data, real, killed = layout(rows), Recorder.records, 0
    build(data, format, "whole")

    def interrupted(self: Recorder, micro: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return real(self, micro)

    monkeypatch.setattr(Recorder, "records", interrupted)
    for _ in range(40):
        left = 1 + killed  # within a block, and between two
        try:
            build(data, format, "killed")
        except KeyboardInterrupt:
            killed += 1
            for name in ("records.bin", *(file.name for file in shards_of(tmp_path / "killed"))):
                with (tmp_path / "killed" / name).open("ab") as file:
                    file.write(b"garbage" * killed)
        else:
            break
    assert killed > 1
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def shards_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("shard-*.bin"))


@pytest.mark.parametrize("name", ["shard-00000.bin", "shard-00001.bin", "records.bin", "key.json"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
@pytest.mark.parametrize("how", ["cut", "flipped", "missing"])
def test_whatever_is_left_of_an_unfinished_cache_is_completed(
    rows: list[Row],
    build: Callable[..., CachedTeacher],
    tmp_path: Path,
    small_blocks: None,
    name: str,
    share: float,
    how: str,
) -> None:
    data, folder = apart(rows), tmp_path / "cache"
    build(data, BF16)
    expected = contents(folder)
    (folder / "index.json").unlink()
    damage(folder / name, share, how)
    build(data, BF16)
    assert contents(folder) == expected


def damage(file: Path, share: float, how: str) -> None:
    content = bytearray(file.read_bytes())
    at = int(share * len(content))
    if how == "missing":
        file.unlink()
    elif how == "cut":
        file.write_bytes(content[:at])
    else:
        content[at] ^= 0x10
        file.write_bytes(content)


def test_what_was_computed_before_a_kill_is_not_computed_again(
    rows: list[Row],
    build: Callable[..., CachedTeacher],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    small_blocks: None,
) -> None:
    computed: list[int] = []
    real = LiveTeacher.tokens

    def counted(self: LiveTeacher, some: Any, batch: Any) -> Any:
        computed.extend(batch.rows)
        return real(self, some, batch)

    monkeypatch.setattr(LiveTeacher, "tokens", counted)
    build(apart(rows), BF16)
    assert sorted(computed) == list(range(len(rows)))
    folder = tmp_path / "cache"
    (folder / "index.json").unlink()
    damage(shards_of(folder)[-1], 0.6, "cut")
    build(apart(rows), BF16)
    assert 0 < len(computed) - len(rows) < len(rows)
    build(apart(rows), BF16)
    assert len(computed) < 2 * len(rows)


def test_progress_counts_tokens(live: LiveTeacher, rows: list[Row], tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    data = in_families(rows)
    open_cache(tmp_path, live, "t", data, BF16, lambda done, of: told.append((done, of)))
    assert told[-1] == (sum(data.sizes.values()),) * 2


def test_an_unfinished_cache_of_another_teacher_is_computed_anew(
    rows: list[Row], build: Callable[..., CachedTeacher], tmp_path: Path
) -> None:
    build(apart(rows), BF16)
    (tmp_path / "cache" / "index.json").unlink()
    build(apart(rows), SPARSE, digest="u")
    build(apart(rows), SPARSE, "whole", digest="u")
    assert contents(tmp_path / "cache") == contents(tmp_path / "whole")


def test_an_unfinished_cache_cannot_be_read(
    live: LiveTeacher, rows: list[Row], build: Callable[..., CachedTeacher], tmp_path: Path
) -> None:
    build(apart(rows), BF16)
    (tmp_path / "cache" / "index.json").unlink()
    for folder in ("cache", "nowhere"):
        with pytest.raises(StoreError, match="are not finished") as caught:
            read_cache(tmp_path / folder, live.output, "t", apart(rows), BF16)
        assert "Run the same command again" in caught.value.hint


def test_a_damaged_cache_gives_an_error_and_never_other_numbers(
    live: LiveTeacher,
    rows: list[Row],
    build: Callable[..., CachedTeacher],
    tmp_path: Path,
    small_blocks: None,
    format: CacheFormat,
) -> None:
    data, folder = apart(rows), tmp_path / "cache"
    build(data, format)
    assert len(shards_of(folder)) > 1
    whole, rng = contents(folder), random.Random(1)
    for name, content in whole.items():
        cases = [(0.0, "missing"), (0.0, "cut"), (0.5, "cut"), (1 - 2 / len(content), "cut")]
        cases += [(rng.random(), "flipped") for _ in range(12)]
        for share, how in cases:
            damage(folder / name, share, how)
            with pytest.raises(StoreError) as caught:
                read_all(read_cache(folder, live.output, "t", data, format), data)
            assert str(folder) in caught.value.message
            hint = caught.value.hint
            assert "Delete the folder" in hint or (how, name) == ("missing", "index.json")
            (folder / name).write_bytes(content)
    with (folder / "shard-00000.bin").open("ab") as file:
        file.write(b"x")
    with pytest.raises(StoreError, match="are damaged"):
        build(data, format)


def test_a_teacher_with_bad_numbers_names_the_row(
    live: LiveTeacher, rows: list[Row], build: Callable[..., CachedTeacher], format: CacheFormat
) -> None:
    live.model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match="row row3 are not finite"):
        build(apart(rows), format)


def test_a_folder_that_cannot_be_written_is_one_clear_error(
    live: LiveTeacher, rows: list[Row], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PotstillError, match="Cannot write"):
        open_cache(tmp_path / "file" / "cache", live, "t", apart(rows), BF16, quiet)


def test_the_estimate_is_an_upper_bound(
    live: LiveTeacher,
    rows: list[Row],
    build: Callable[..., CachedTeacher],
    tmp_path: Path,
    format: CacheFormat,
) -> None:
    data = in_families(rows)
    build(data, format)
    files = contents(tmp_path / "cache").items()
    size = sum(len(content) for name, content in files if name.endswith(".bin"))
    estimate = cache_bytes(data, live.output.weight.shape[1], format)
    assert 0.2 * estimate < size <= estimate + 60 * len(data.families)  # headers of tiny records
