"""What curation will cost, and what it leaves for the later stages.

In: a CurateConfig, the figures of generation. Out: figures. Light.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from potstill.core.costs import seconds
from potstill.core.files import count_lines
from potstill.core.stage import Figures
from potstill.curate.config import CurateConfig

ROWS_PER_SECOND = 500
BYTES_A_ROW = 4000


def estimate(config: CurateConfig, earlier: Mapping[str, Figures], project: Path) -> Figures:
    """Few rows of a good teacher are rejected, so none is counted off."""
    rows = earlier["generate"]["rows"]
    held_out = config.validation_fraction + config.test_fraction
    return {
        "train_rows": round(rows * (1 - held_out)),
        "validation_rows": round(rows * config.validation_fraction),
        "test_rows": round(rows * config.test_fraction),
        "seconds": 1 + seconds(rows, ROWS_PER_SECOND),
        "memory_bytes": 1e8 + BYTES_A_ROW * rows,
        "disk_bytes": BYTES_A_ROW * rows,
    }


def counts(data: Path) -> Figures:
    """What a finished curation gave."""
    return {
        f"{split}_rows": count_lines(data / f"{split}.jsonl")
        for split in ("train", "validation", "test")
    }
