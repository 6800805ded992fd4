"""Files of ready-made rows, one row at a time: CSV, TSV, JSON, JSON Lines, Parquet, SQuAD.

In: a path. Out: raw rows (fields by name) and bad ones with their reason, in order. All but JSON
are streamed, so a file may be larger than the memory. Knows no column's meaning.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from potstill.core.extras import require
from potstill.ingest.content import UnusableError
from potstill.ingest.encodings import decode, encoding_of

KINDS = {
    ".csv": "CSV",
    ".tsv": "TSV",
    ".json": "JSON",
    ".jsonl": "JSON Lines",
    ".ndjson": "JSON Lines",
    ".parquet": "Parquet",
}
"""What files of a name are read as."""
STREAMED = frozenset({"CSV", "TSV", "JSON Lines", "Parquet"})
LONGEST_LINE = 16_000_000
BATCH = 512
WRAPPERS = ("data", "rows", "examples", "questions", "items", "train")


@dataclass(frozen=True)
class RawRow:
    """A row as it stands in the file. `number`: its line, or its place from 1."""

    number: int
    fields: Mapping[str, Any]
    problem: UnusableError | None = None
    """Why it cannot be read; `fields` then holds what there is of it."""


@dataclass
class RowFile:
    """An opened file of rows."""

    rows: Iterator[RawRow]
    position: Callable[[], int]
    """How far the reading is, on the scale of `size`."""
    size: int
    columns: list[str] = field(default_factory=list)
    """The columns that every row has; empty where each row brings its own keys."""
    stream: Any = None
    """What the rows come from, if it must be closed."""

    def close(self) -> None:
        """Close the file, whether or not its rows were read."""
        if self.stream is not None:
            self.stream.close()


def open_rows(path: Path, kind: str) -> RowFile:
    """The rows of a file. `kind`: one of KINDS' values.

    Errors: UnusableError for a file that cannot be read at all, MissingExtraError.
    """
    if kind in ("CSV", "TSV"):
        from potstill.ingest.tables import open_table

        return open_table(path, "\t" if kind == "TSV" else "")
    if kind == "JSON Lines":
        return _json_lines(path)
    if kind == "JSON":
        return _json(path)
    return _parquet(path)


def _json_lines(path: Path) -> RowFile:
    # Only "\n" ends a row: JSON may hold the other line ends of Unicode as they are.
    encoding = encoding_of(path)
    raw = path.open("rb")
    file = TextIOWrapper(raw, encoding=encoding, errors="surrogateescape", newline="\n")

    def rows() -> Iterator[RawRow]:
        number = 0
        while line := file.readline(LONGEST_LINE):
            number += 1
            if len(line) == LONGEST_LINE:
                while line and not line.endswith("\n"):
                    line = file.readline(LONGEST_LINE)
                yield _bad(number, "too_long", "the line has more than 16 million characters")
            elif line.strip():
                yield _parsed(number, line)

    return RowFile(rows(), raw.tell, path.stat().st_size, stream=file)


def _parsed(number: int, line: str) -> RawRow:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return _bad(number, "bad_json", f"not valid JSON: {str(error)[:120]}", line=line[:2000])
    if not isinstance(value, dict):
        return _bad(number, "not_a_row", "the line is no JSON object", line=line[:2000])
    return RawRow(number, value)


def _bad(number: int, reason: str, detail: str, **fields: Any) -> RawRow:
    return RawRow(number, fields, UnusableError(reason, detail))


def _json(path: Path) -> RowFile:
    try:
        value = json.loads(decode(path.read_bytes()))
    except (ValueError, RecursionError) as error:
        raise UnusableError(
            "damaged_json",
            f"not valid JSON: {str(error)[:120]}; one object a line is read from .jsonl files",
        ) from error
    found = _list_in(value)
    place = 0

    def rows() -> Iterator[RawRow]:
        nonlocal place
        for number, row in enumerate(_flat(found), 1):
            place = number
            if isinstance(row, dict):
                yield RawRow(number, row)
            else:
                yield _bad(number, "not_a_row", "the item is no JSON object", item=row)

    return RowFile(rows(), lambda: place, sum(1 for _ in _flat(found)))


def _list_in(value: Any) -> list[Any]:
    """The rows of a JSON file: the file itself, or the list under a usual name or the only one."""
    if isinstance(value, list):
        return value
    lists = {}
    if isinstance(value, dict):
        lists = {name: one for name, one in value.items() if isinstance(one, list)}
    for name in WRAPPERS:
        if name in lists:
            return list(lists[name])
    if len(lists) == 1:
        return list(next(iter(lists.values())))
    raise UnusableError(
        "not_rows",
        "the JSON is neither a list of rows nor SQuAD, nor an object with one list under "
        + ", ".join(WRAPPERS),
    )


def _flat(items: list[Any]) -> Iterator[Any]:
    """Rows as they are; SQuAD's articles as a row a question."""
    for place, item in enumerate(items, 1):
        if isinstance(item, dict) and isinstance(item.get("paragraphs"), list):
            yield from _squad(item, place)
        else:
            yield item


def _squad(article: Mapping[str, Any], place: int) -> Iterator[Any]:
    """Questions of a SQuAD article (v1.1 and v2.0), each with its paragraph and article."""
    for paragraph in article["paragraphs"]:
        questions = paragraph.get("qas") if isinstance(paragraph, dict) else None
        if not isinstance(questions, list):
            yield paragraph
            continue
        for question in questions:
            if not isinstance(question, dict):
                yield question
                continue
            yield {
                **question,
                "context": paragraph.get("context", ""),
                "document": f"{place} {article.get('title', '')}".strip(),
            }


def _parquet(path: Path) -> RowFile:
    require("pyarrow", "documents", "Reading Parquet files")
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    trouble = (ArrowException, OSError, ValueError)
    try:
        file = ParquetFile(path, memory_map=False, pre_buffer=False)
    except trouble as error:
        raise _damaged(error) from error
    place = 0

    def rows() -> Iterator[RawRow]:
        nonlocal place
        batches = file.iter_batches(batch_size=BATCH, use_threads=False)
        while True:
            try:
                batch = next(batches, None)
                found = [] if batch is None else batch.to_pylist()
            except trouble as error:
                raise _damaged(error) from error
            if batch is None:
                return
            for row in found:
                place += 1
                yield RawRow(place, row)

    names = list(file.schema_arrow.names)
    return RowFile(rows(), lambda: place, file.metadata.num_rows, names, stream=file)


def _damaged(error: BaseException) -> UnusableError:
    words = str(error).split("\n")[0][:160]
    return UnusableError("damaged_parquet", f"the Parquet file is damaged or locked: {words}")
