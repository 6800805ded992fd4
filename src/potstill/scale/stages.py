"""Which stages have something that workers can do, and the stage as it then runs.

In: a stage's name and its own function, a place. Out: a function of the same form. A stage that is
not named here runs as ever, in the process that puts the run together.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from potstill.core.stage import Artifact, Context, Draft, StageFunction
from potstill.scale.place import Place, place_from

SPREAD = {"ingest": "potstill.scale.ingest", "generate": "potstill.scale.generate"}
"""Stage -> the module whose `run(config, inputs, draft, context, place)` spreads it."""
TRAINED = ("correct", "distill")
"""Stages whose processes are Ray's, where there are several and they see the store."""


def on_ray(stage: str, function: StageFunction, values: Mapping[str, Any]) -> StageFunction:
    """The stage's function with its work at that place."""
    place = place_from(values)
    if stage in TRAINED:
        return _trained(function, place)
    if stage not in SPREAD:
        return function
    spread = importlib.import_module(SPREAD[stage]).run

    def run(config: Any, inputs: Mapping[str, Artifact], draft: Draft, context: Context) -> None:
        spread(config, inputs, draft, context, place)

    return run


def _trained(function: StageFunction, place: Place) -> StageFunction:
    """Training in as many processes as the recipe says, by Ray Train."""

    def run(config: Any, inputs: Mapping[str, Artifact], draft: Draft, context: Context) -> None:
        count = _processes(config, place)
        if count == 1 or not place.sees_files:
            function(config, inputs, draft, context)
            return
        from potstill.scale.train import distill_on_ray

        distill_on_ray(
            place.address, config, inputs, draft, context, workers=count, threads=place.threads
        )

    return run


def _processes(config: Any, place: Place) -> int:
    """How many the recipe asks for; by `auto` as many as there may be workers. A student that marks
    answers is trained in one."""
    asked = getattr(config, "processes", 1)
    return (place.workers or 1) if asked == "auto" else int(asked)
