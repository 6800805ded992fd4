"""Arithmetic that the stages' estimates share: how work becomes seconds on this machine.

In: amounts of work. Out: seconds, about. The stages' rates are fitted to the quickstart on two
cores (docs/experiments.md, "What plan foresees"); `Runner.plan` corrects them by what a stage
really took here the last time. Knows nothing of models or stages.
"""

from __future__ import annotations

from potstill.core.machine import usable_cores

FITTED_CORES = 2


def seconds(work: float, rate: float) -> float:
    """Time for `work` at `rate` units a second on the two cores it was fitted to; more cores
    are taken to be faster in proportion."""
    return work / rate * FITTED_CORES / usable_cores()
