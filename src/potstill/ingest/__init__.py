"""Files in; documents, chunks and ready-made rows out: the first stage.

In: paths below the project, or `sample:` names. Out: documents.jsonl and chunks.jsonl, rows.jsonl
and contexts.jsonl, rejected.jsonl. Light: what reads PDFs, Word files, tables and images is
imported by the processes that read them only.
"""

from __future__ import annotations

from potstill.core.stage import Stage
from potstill.ingest.config import IngestConfig
from potstill.ingest.plan import counts, estimate, facts

__all__ = ["STAGE", "IngestConfig"]

STAGE = Stage(
    name="ingest",
    version=3,
    config=IngestConfig,
    inputs=(),
    function="potstill.ingest.run:run",
    facts=facts,
    estimate=estimate,
    counts=counts,
)
