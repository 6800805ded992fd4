"""Export: the student as files that others run, compared with it before the run is done.

In: distill's student, curate's test rows, evaluate's figures. Out: safetensors, GGUF files,
export.json, a model card. Import-light: the work is in `run.py`.
"""

from __future__ import annotations

from potstill.core.stage import Stage
from potstill.export.config import ExportConfig
from potstill.export.plan import estimate, facts

STAGE = Stage(
    name="export",
    version=2,
    config=ExportConfig,
    inputs=("curate", "correct", "distill", "evaluate"),
    function="potstill.export.run:run",
    facts=facts,
    estimate=estimate,
    eases_memory="Teacher and student are compared in float32: cut a smaller student.",
)

__all__ = ["STAGE", "ExportConfig"]
