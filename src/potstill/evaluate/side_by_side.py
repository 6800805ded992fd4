"""Finished runs set side by side: as one page, and as files.

In: runs' reports and stored answers. Out: the comparison, and its files, each written whole or not
at all. Light: no torch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from potstill.core.files import write_atomic
from potstill.evaluate import compare_page
from potstill.evaluate.compare import Compared, compare

FORMATS = ("html", "json", "md", "csv")


def compared(name: str, report: dict[str, Any], predictions: Path) -> Compared:
    """A run for `compare`, with its stored answers if they are there."""
    rows: list[dict[str, Any]] = []
    if predictions.exists():
        with predictions.open(encoding="utf-8") as file:
            rows = [json.loads(line) for line in file if line.strip()]
    return Compared(name, report, rows)


def write_comparison(
    runs: Sequence[Compared], folder: Path, *, by: str = "f1"
) -> tuple[dict[str, Any], list[Path]]:
    """Compare and write compare.html, .json, .md and .csv into `folder`."""
    found = compare(runs, by=by)
    texts = {
        "html": compare_page.render(found),
        "json": json.dumps(found, indent=2, ensure_ascii=False) + "\n",
        "md": compare_page.markdown(found),
        "csv": compare_page.csv_text(found),
    }
    paths = [folder / f"compare.{ending}" for ending in FORMATS]
    for path, ending in zip(paths, FORMATS, strict=True):
        write_atomic(path, texts[ending])
    return found, paths
