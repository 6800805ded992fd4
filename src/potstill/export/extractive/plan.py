"""What exporting spans depends on besides its config, and what it will cost.

In: a SpanExportConfig, the figures of the earlier stages. Out: facts, figures. Light.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from potstill.core.costs import seconds
from potstill.core.extras import check_installed, installed_version
from potstill.core.stage import Facts, Figures
from potstill.export.extractive.config import SpanExportConfig

TOOLS = ("onnx", "onnxscript", "onnxruntime")
MARKING_RATE = 22.6e6 * 4000


def facts(config: SpanExportConfig, project: Path) -> Facts:
    """What writes and runs the files. Errors: MissingExtraError."""
    for tool in TOOLS:
        check_installed(tool, "Writing ONNX files (task: spans)", "onnx")
    return {"writer": " ".join(f"{tool} {installed_version(tool)}" for tool in TOOLS)}


def estimate(config: SpanExportConfig, earlier: Mapping[str, Figures], project: Path) -> Figures:
    """Both files are written, compared and timed."""
    student = earlier["distill"]["parameters"]
    rows = min(earlier["curate"]["test_rows"], config.max_examples)
    read = rows * earlier["ingest"]["chunk_tokens"] * 2 * (2 + config.speed_rounds)
    return {
        "files": 3,
        "seconds": 45 + seconds(read, MARKING_RATE / student),
        "memory_bytes": 9e8 + 20.0 * student,
        "disk_bytes": student * 9.5,
    }
