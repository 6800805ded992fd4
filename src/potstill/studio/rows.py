"""Rows of JSON Lines files by number: fifty thousand of them are open in a moment.

In: files of records. Out: where each line lies, and what it is counted by; a row is read when it is
shown. Finished results never change, so what was found out about a file stays right. Knows no page.
"""

from __future__ import annotations

import json
import re
import threading
from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from potstill.core.files import disk_errors
from potstill.errors import StoreError

KEPT_FILES = 24
# Both are written by our own records, without white space; inside a text the signs are escaped.
KIND = re.compile(rb'"kind":"([a-z_]+)"')
REASON = re.compile(rb'"reason":"([^"\\]*)"')
ID = re.compile(rb'"id":"([^"\\]*)"')


@dataclass
class RowFile:
    """One file: where its lines begin, and the word that each is counted by (kind or reason)."""

    path: Path
    starts: array[int]
    words: list[str]
    counts: Counter[str] = field(default_factory=Counter)
    _ids: dict[str, int] | None = None

    def __len__(self) -> int:
        return len(self.words)

    def lines(self, numbers: list[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        """(number, row) of those lines. Errors: StoreError if the file is gone or damaged."""
        with disk_errors(self.path, "read"), self.path.open("rb") as file:
            for number in numbers:
                file.seek(self.starts[number])
                yield number, _row(self.path, number, file.readline())

    def matching(self, word: str, text: str) -> list[int]:
        """The numbers of rows of that kind or reason, in which every word of the text stands, in
        capitals or not."""
        numbers = range(len(self))
        if word:
            numbers = [n for n in numbers if self.words[n] == word]  # type: ignore[assignment]
        wanted = text.lower().split()
        if not wanted:
            return list(numbers)
        found = []
        with disk_errors(self.path, "read"):
            data = self.path.read_bytes()
        written = [json.dumps(one, ensure_ascii=False)[1:-1] for one in wanted]
        plain = [one.encode() for one in written if one.isascii()]  # several times as fast
        others = [one for one in written if not one.isascii()]
        for number in numbers:
            line = data[self.starts[number] : self.starts[number + 1]].lower()
            if all(one in line for one in plain) and (
                not others or _has(data[self.starts[number] : self.starts[number + 1]], others)
            ):
                found.append(number)
        return found

    def find(self, identity: str) -> dict[str, Any] | None:
        """The row of that id."""
        if self._ids is None:
            with disk_errors(self.path, "read"), self.path.open("rb") as file:
                matches = [ID.search(line) for line in file if line.strip()]
            self._ids = {m[1].decode(): n for n, m in enumerate(matches) if m is not None}
        number = self._ids.get(identity)
        return None if number is None else next(self.lines([number]))[1]


class RowFiles:
    """Files that were opened, the last few of them."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, RowFile] = OrderedDict()
        self._lock = threading.Lock()

    def open(self, path: Path, counted_by: re.Pattern[bytes] = KIND) -> RowFile:
        """The file's lines. Errors: StoreError if it cannot be read."""
        with self._lock:
            if path in self._open:
                self._open.move_to_end(path)
                return self._open[path]
        made = _open(path, counted_by)
        with self._lock:
            self._open[path] = made
            while len(self._open) > KEPT_FILES:
                self._open.popitem(last=False)
        return made


def _open(path: Path, counted_by: re.Pattern[bytes]) -> RowFile:
    starts, words, at = array("q"), [], 0
    with disk_errors(path, "read"), path.open("rb") as file:
        for line in file:
            if not line.isspace():
                starts.append(at)
                found = counted_by.search(line)
                words.append(found[1].decode() if found else "")
            at += len(line)
    starts.append(at)
    return RowFile(path, starts, words, Counter(words))


def _has(line: bytes, words: list[str]) -> bool:
    text = line.decode("utf-8", "replace").lower()
    return all(word in text for word in words)


def _row(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise StoreError(
            f"{path}, line {number + 1} is damaged.", "Run the recipe again."
        ) from error
    if not isinstance(row, dict):
        raise StoreError(f"{path}, line {number + 1} is no record.", "Run the recipe again.")
    return row
