"""Files are whole or absent, and bad lines are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from potstill.core import files
from potstill.errors import InputError, StoreError
from potstill.records import Turn


def test_records_come_back_as_they_were_written(tmp_path: Path) -> None:
    turns = [Turn(role="user", content="naïve\n\u2028 line"), Turn(role="assistant", content="")]
    path = tmp_path / "deep" / "turns.jsonl"
    assert files.write_records(path, turns) == 2
    assert list(files.read_records(path, Turn)) == turns


def test_a_writer_that_fails_leaves_the_old_file_and_no_part(tmp_path: Path) -> None:
    path = tmp_path / "turns.jsonl"
    files.write_records(path, [Turn(role="user", content="old")])

    def broken() -> object:
        yield Turn(role="user", content="new")
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        files.write_records(path, broken())  # type: ignore[arg-type]
    assert [turn.content for turn in files.read_records(path, Turn)] == ["old"]
    assert [one.name for one in tmp_path.iterdir()] == ["turns.jsonl"]


def test_a_bad_line_is_named_by_file_line_and_field(tmp_path: Path) -> None:
    path = tmp_path / "turns.jsonl"
    path.write_text('{"role": "user", "content": "a"}\n{"role": "king", "content": "b"}\n')
    with pytest.raises(InputError, match=r"turns\.jsonl, line 2: not a valid Turn \(role"):
        list(files.read_records(path, Turn))


def test_a_disk_that_refuses_becomes_one_clear_line(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("a file where a folder should be")
    with pytest.raises(StoreError, match="Cannot write"):
        files.write_atomic(blocked / "inner.json", "{}")


def test_a_full_disk_is_said_in_words(full_disk: Path) -> None:
    with (
        pytest.raises(StoreError, match="No space left on device"),
        files.disk_errors(full_disk, "write"),
    ):
        full_disk.write_text("x" * 10000)


def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "below" / "made"

    def fill(text: str, *, breaks: bool) -> None:
        with files.whole_folder(target) as part:
            (part / f"{text}.txt").write_text(text)
            if breaks:
                raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        fill("half", breaks=True)
    assert not target.exists()
    fill("whole", breaks=False)
    assert [one.name for one in target.iterdir()] == ["whole.txt"]
    assert [one.name for one in target.parent.iterdir()] == ["made"]
    blocked = tmp_path / "file"
    blocked.write_text("a file where a folder should be")
    with pytest.raises(StoreError, match="Cannot write"), files.whole_folder(blocked / "inner"):
        pass
