"""Which stages have something that workers can do, and the stage as it then runs.

In: a stage's name and its own function, a place. Out: a function of the same form. A stage that is
not named here runs as ever, in the process that puts the run together.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from potstill.core.stage import StageFunction
from potstill.scale.place import place_from

SPREAD = {"ingest": "potstill.scale.ingest", "generate": "potstill.scale.generate"}
"""Stage -> the module whose `run(config, inputs, draft, context, place)` spreads it."""
ON_WORKERS = *SPREAD, "evaluate"
"""Stages that use the workers of a Ray of this machine; a training in several processes begins one
of its own, whose cores are as many as it asks for."""
AT_PLACE = {
    "correct": "potstill.scale.train",
    "distill": "potstill.scale.train",
    "evaluate": "potstill.scale.evaluate",
}
"""Stage -> the module whose `at_place(function, place)` spreads it if workers see its files:
trainings on as many as their section names processes, models that are scored on all."""


def on_ray(stage: str, function: StageFunction, values: Mapping[str, Any]) -> StageFunction:
    """The stage's function with its work at that place."""
    place = place_from(values)
    if stage in AT_PLACE:
        at_place: Callable[..., StageFunction] = importlib.import_module(AT_PLACE[stage]).at_place
        return at_place(function, place)
    if stage not in SPREAD:
        return function
    spread = importlib.import_module(SPREAD[stage]).run

    def run(config: Any, inputs: Any, draft: Any, context: Any) -> None:
        spread(config, inputs, draft, context, place)

    return run
