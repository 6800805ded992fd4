"""Examples -> kept or rejected with a reason, and split without leaks."""

from potstill.core.stage import Stage
from potstill.curate.config import CurateConfig
from potstill.curate.plan import counts, estimate

__all__ = ["STAGE", "CurateConfig"]

STAGE = Stage(
    name="curate",
    version=1,
    config=CurateConfig,
    inputs=("ingest", "generate"),
    function="potstill.curate.run:run",
    estimate=estimate,
    counts=counts,
)
