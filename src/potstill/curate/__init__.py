"""Examples -> kept or rejected with a reason, and split without leaks."""

from potstill.core.stage import Stage
from potstill.curate.config import CurateConfig
from potstill.curate.plan import counts, estimate, facts

__all__ = ["STAGE", "CurateConfig"]

STAGE = Stage(
    name="curate",
    version=3,
    config=CurateConfig,
    inputs=("ingest", "generate"),
    function="potstill.curate.run:run",
    facts=facts,
    estimate=estimate,
    counts=counts,
)
