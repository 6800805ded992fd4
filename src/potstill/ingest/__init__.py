"""Files in, documents and chunks out: the first stage.

In: paths below the project, or `sample:` names. Out: documents.jsonl, chunks.jsonl and
rejected.jsonl. Light: what reads PDFs, Word files and images is imported by `run.py` only.
"""

from __future__ import annotations

from potstill.core.stage import Stage
from potstill.ingest.config import IngestConfig
from potstill.ingest.plan import counts, estimate, facts

__all__ = ["STAGE", "IngestConfig"]

STAGE = Stage(
    name="ingest",
    version=1,
    config=IngestConfig,
    inputs=(),
    function="potstill.ingest.run:run",
    facts=facts,
    estimate=estimate,
    counts=counts,
)
