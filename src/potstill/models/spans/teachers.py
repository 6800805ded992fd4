"""The teacher's distributions over spans, asked for once and kept in a file.

In: the settings, the teacher, rows. Out: `Marks` by row. A killed run goes on with the rows that
are missing. Temperature comes later, from the log-probabilities. Knows nothing of training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from potstill.core.files import disk_errors, read_records
from potstill.models.device import device_here
from potstill.models.encoder import encoder_folder
from potstill.models.load import load_model, load_tokenizer
from potstill.models.spans.decoding import likeliest
from potstill.models.spans.marks import Marks
from potstill.models.spans.reader import ReaderSettings, SpanReader
from potstill.models.spans.rows import SpanRow
from potstill.models.spans.scorer import SpanScorer
from potstill.models.spans.signal_config import SpanSignalConfig

AT_ONCE = 32


def marks_in(
    file: Path,
    signal: SpanSignalConfig,
    teacher: str,
    rows: Sequence[SpanRow],
    *,
    refusal: str | None,
    settings: ReaderSettings,
    dtype: torch.dtype,
    tell: Callable[[int, int], None],
) -> dict[str, Marks]:
    """What the teacher says of every row, from the file as far as it goes.

    teacher: the language model's reference; refusal: its words for no answer; dtype: of its
    products. settings: of a span model. Errors: ModelError for a teacher that cannot be asked;
    StoreError for the disk.
    """
    found = _read(file)
    missing = [row for row in rows if row.id not in found]
    if not missing:
        return found
    if signal.source == "span_model":
        source = _of_spans(signal, settings, missing)
    else:
        source = _of_language(signal, teacher, missing, refusal, dtype)
    total = len(found) + len(missing)
    with disk_errors(file, "write"), file.open("a", encoding="utf-8") as out:
        for marks in source:
            out.write(marks.model_dump_json() + "\n")
            out.flush()
            found[marks.id] = marks
            tell(len(found), total)
    return found


def _read(file: Path) -> dict[str, Marks]:
    """The whole lines of an earlier sitting; a torn last one is cut off."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        return {}
    data = file.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with disk_errors(file, "write"):
            file.write_bytes(whole)
    return {one.id: one for one in read_records(file, Marks)}


def _of_language(
    signal: SpanSignalConfig,
    teacher: str,
    rows: Sequence[SpanRow],
    refusal: str | None,
    dtype: torch.dtype,
) -> Iterator[Marks]:
    device = device_here()
    scorer = SpanScorer(
        load_model(teacher, dtype).to(device),
        load_tokenizer(teacher),
        starts=signal.starts,
        longest_words=signal.longest_words,
        refusal=refusal,
    )
    return scorer.marks(rows)


def _of_spans(
    signal: SpanSignalConfig, settings: ReaderSettings, rows: Sequence[SpanRow]
) -> Iterator[Marks]:
    reader = SpanReader(encoder_folder(str(signal.model)), settings)
    for start in range(0, len(rows), AT_ONCE):
        some = rows[start : start + AT_ONCE]
        told = reader.scored([(row.question, row.passage) for row in some])
        for row, (windows, scored) in zip(some, told, strict=True):
            best = likeliest(windows, scored, signal.spans)
            yield Marks(
                id=row.id,
                spans=tuple((first, end) for first, end, _ in best),
                log_p=tuple(value for _, _, value in best),
                none=scored.none,
            )
