"""Export a student that marks answers: safetensors and ONNX, compared with it before release.

In: distill's student, curate's test rows, evaluate's figures. Out: safetensors, model.onnx,
model-int8.onnx, export.json, a model card. Import-light: the work is in `run.py`.
"""

from __future__ import annotations

from potstill.core.stage import Stage
from potstill.export.extractive.config import SpanExportConfig
from potstill.export.extractive.plan import estimate, facts

STAGE = Stage(
    name="export",
    version=1,
    config=SpanExportConfig,
    inputs=("curate", "ingest", "distill", "evaluate"),
    function="potstill.export.extractive.run:run",
    facts=facts,
    estimate=estimate,
)

__all__ = ["STAGE", "SpanExportConfig"]
