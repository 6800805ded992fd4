"""Rows of a CSV or TSV file, streamed: delimiter, quotes and encoding found by looking.

In: a path. Out: rows by the names in the first line; a row that is ragged, or whose quote is
never closed, with its reason. A forgotten quote costs its own line, not the rest of the file.
Knows no column's meaning.
"""

from __future__ import annotations

import csv
import re
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from potstill.ingest.content import UnusableError
from potstill.ingest.encodings import encoding_of
from potstill.ingest.row_files import RawRow, RowFile

DELIMITERS = (",", ";", "\t", "|")
SAMPLE = 1 << 18
SAMPLE_ROWS = 200
LONGEST_LINE = 2_000_000
LONGEST_RECORD = 2_000_000
MOST_LINES = 500
"""Of one record. An open quote is noticed after so many lines at the latest."""
SHOWN = 2000
OPEN = "a quote is opened and not closed"


@dataclass(frozen=True)
class Dialect:
    """How the cells of a table are told apart."""

    delimiter: str
    quote: str = '"'
    escape: str | None = None

    def reader(self, lines: Iterator[str], strict: bool = False) -> Any:
        """A csv.reader over `lines`. strict: quotes that are not as they should be are errors."""
        return csv.reader(
            lines,
            delimiter=self.delimiter,
            quotechar=self.quote,
            escapechar=self.escape,
            doublequote=self.escape is None,
            strict=strict,
        )


class _Readable(Protocol):
    """A text file, as far as it is needed here."""

    def readline(self, size: int, /) -> str:
        """The next line with its end, at most `size` characters of it; "" at the end."""


class _BadRecordError(Exception):
    """The record that is being read cannot be one."""

    def __init__(self, reason: str, detail: str, again: bool) -> None:
        super().__init__(detail)
        self.reason, self.detail, self.again = reason, detail, again


class _Lines:
    """Gives csv.reader its lines, and remembers those of the record that is being read."""

    def __init__(self, file: _Readable) -> None:
        self.file = file
        self.number = 0
        self.width = 0
        """Cells that a row should have; 0 while nobody knows."""
        self.record: list[str] = []
        self._again: deque[str] = deque()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else self.file.readline(LONGEST_LINE)
        if not line:
            if self.record:
                raise _BadRecordError("open_quote", "a quote is opened and never closed", True)
            raise StopIteration
        self.number += 1
        self.record.append(line)
        if len(line) == LONGEST_LINE and line[-1] not in "\r\n":
            while line and line[-1] not in "\r\n":
                line = self.file.readline(LONGEST_LINE)
            raise _BadRecordError("too_long", "the line has over 2 million characters", False)
        if len(self.record) > MOST_LINES or sum(map(len, self.record)) > LONGEST_RECORD:
            raise _BadRecordError("open_quote", OPEN, True)
        return line

    def begin(self) -> int:
        """A new record begins; the number of its line."""
        self.record = []
        return self.number + 1

    def again(self) -> str:
        """Read all but the record's first line once more; returns that line."""
        first, *others = self.record
        self._again.extendleft(reversed(others))
        self.number -= len(others)
        return first


def open_table(path: Path, delimiter: str) -> RowFile:
    """The rows of a table; the first line names the columns. `delimiter`: empty to find it.

    Errors: UnusableError with the reason not_text, or empty_table for a file without a row.
    """
    csv.field_size_limit(LONGEST_RECORD)
    encoding = encoding_of(path)
    lossy = "surrogateescape" if encoding.replace("_", "-").startswith("utf-8") else "replace"
    with path.open(encoding=encoding, errors=lossy, newline="") as file:
        dialect = sniff(file.read(SAMPLE), delimiter)
    raw = path.open("rb")
    file = TextIOWrapper(raw, encoding=encoding, errors=lossy, newline="")
    lines = _Lines(file)
    records = _records(lines, dialect)
    header: list[str] = []
    for _, cells, problem in records:
        if problem is None and any(cell.strip() for cell in cells):
            header = [cell.strip() for cell in cells]
            break
    if not header:
        file.close()
        raise UnusableError("empty_table", "the file has no line that names the columns")
    twice = [name for name, count in Counter(filter(None, header)).items() if count > 1]
    if twice:
        file.close()
        raise UnusableError("wrong_columns", f"the column {twice[0]!r} is there twice")

    lines.width = len(header)

    def rows() -> Iterator[RawRow]:
        for number, cells, problem in records:
            yield _row(number, header, cells, problem)

    named = [name for name in header if name]
    return RowFile(rows(), raw.tell, path.stat().st_size, named, stream=file)


def _row(number: int, header: list[str], cells: list[str], problem: UnusableError | None) -> RawRow:
    if problem is not None:
        return RawRow(number, {"line": cells[0][:SHOWN]}, problem)
    fields = {name: cell for name, cell in zip(header, cells, strict=False) if name}
    if len(cells) != len(header):
        return RawRow(
            number,
            {**fields, "": cells[len(header) :]} if len(cells) > len(header) else fields,
            UnusableError(
                "ragged_row", f"{len(cells)} cells, and the first line names {len(header)} columns"
            ),
        )
    return RawRow(number, fields)


def _records(
    lines: _Lines, dialect: Dialect
) -> Iterator[tuple[int, list[str], UnusableError | None]]:
    """(line number, cells, problem); with a problem the one cell is the line. Empty lines go, and
    empty cells beyond the columns."""
    reader = dialect.reader(lines)
    while True:
        number = lines.begin()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except _BadRecordError as problem:
            line = lines.again() if problem.again else lines.record[0]
            reader = dialect.reader(lines)
            yield number, [line], UnusableError(problem.reason, problem.detail)
        except csv.Error as error:
            line = lines.again()
            reader = dialect.reader(lines)
            yield number, [line], UnusableError("bad_line", f"the line cannot be read: {error}")
        else:
            while len(cells) > lines.width > 0 and not cells[-1].strip():
                cells.pop()
            if _swallowed(lines, cells, dialect):
                line = lines.again()
                reader = dialect.reader(lines)
                yield number, [line], UnusableError("open_quote", OPEN)
            elif cells:
                yield number, cells, None


def _swallowed(lines: _Lines, cells: list[str], dialect: Dialect) -> bool:
    """Whether a quote that was never closed took the next row along, up to that row's first quote.

    Then something other than a delimiter follows that quote, and the next line is a row by itself.
    """
    if not lines.width or len(lines.record) < 2 or len(cells) == lines.width:
        return False
    try:
        next(dialect.reader(iter(lines.record), strict=True))
    except csv.Error:
        return len(next(dialect.reader(iter(lines.record[1:2])), ())) == lines.width
    return False


def sniff(sample: str, delimiter: str = "") -> Dialect:
    """The dialect in which most lines have as many cells as the first one, and more than one."""
    best, most = Dialect(delimiter or ","), (0.0, 1)
    for one in (delimiter,) if delimiter else DELIMITERS:
        dialect = Dialect(one, *_quotes(sample, one))
        lines = _Lines(_Text(sample))
        widths = [len(cells) for _, cells, bad in islice(_records(lines, dialect), SAMPLE_ROWS)
                  if bad is None]  # fmt: skip
        if not widths:
            continue
        if len(widths) > 2:
            widths.pop()  # the sample may end within it
        share = sum(width == widths[0] for width in widths) / len(widths)
        score = (round(share, 1) if widths[0] > 1 else 0.0, widths[0])
        if score > most or delimiter:
            best, most = dialect, score
    return best


def _quotes(sample: str, delimiter: str) -> tuple[str, str | None]:
    """The quote sign, and what escapes it within quotes (None: it is written twice)."""
    if '"' not in sample:
        first = sample.split("\n", 1)[0].strip()
        cells = first.split(delimiter)
        if len(cells) > 1 and all(re.fullmatch(r"'.*'", cell.strip()) for cell in cells):
            return "'", None
        return '"', None
    return '"', "\\" if '\\"' in sample and '""' not in sample else None


class _Text:
    """A sample that reads like a file, its line ends untouched."""

    def __init__(self, text: str) -> None:
        self.lines = deque(re.findall(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+", text))

    def readline(self, size: int, /) -> str:
        """The next line, "" at the end."""
        return self.lines.popleft()[:size] if self.lines else ""
