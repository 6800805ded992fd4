"""Arithmetic that the stages' estimates share: how work becomes seconds on this machine.

In: amounts of work. Out: seconds, about. The rates were measured on two cores (the figures are in
docs/experiments.md); `Runner.plan` corrects them by what a stage really took here the last time.
Knows nothing of models or stages.
"""

from __future__ import annotations

from potstill.core.machine import usable_cores

MEASURED_CORES = 2


def seconds(work: float, rate: float) -> float:
    """Time for `work` at `rate` units a second on the two cores it was measured on; more cores
    are faster in proportion."""
    return work / rate * MEASURED_CORES / usable_cores()
