"""How many trials run at once on this machine.

In: a study, its project. Out: a number; warnings as events, where the study asks for more than
there is room for. Starts nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from potstill import pipeline
from potstill.core.machine import memory_bytes, usable_cores
from potstill.tune.study import Study

MEMORY_SHARE = 0.8  # of the machine's memory that parallel trials may be expected to take
Watcher = Callable[[dict[str, Any]], None]


def trials_at_once(study: Study, project: Path, watch: Watcher) -> int:
    """How many trials run at once."""
    wanted, cores = study.config.parallel, usable_cores()
    if wanted == 1:
        return 1
    stages = [stage.name for stage in pipeline.PIPELINE]
    own = stages[len(study.shared_stages) : stages.index(study.until) + 1]
    steps = {one.name: one for one in pipeline.plan(study.recipe, project)}
    # The largest of them, though of those before distill one runs at a time: on the safe side.
    needed = max(steps[name].estimate.get("memory_bytes", 0.0) for name in own)
    machine = memory_bytes()
    room = cores
    if machine is not None and needed > 0:
        room = max(1, int(MEMORY_SHARE * machine / needed))
    if wanted == "auto":
        return max(1, min(cores, room, study.config.trials))
    if wanted > room:
        watch(
            {
                "stage": "",
                "kind": "study_warning",
                "message": f"{wanted} trials at once may want {wanted * needed / 1e9:.1f} GB of "
                f"memory; this machine has {(machine or 0) / 1e9:.1f} GB.",
            }
        )
    if wanted > cores:
        watch(
            {
                "stage": "",
                "kind": "study_warning",
                "message": f"{wanted} trials at once share {cores} processor cores.",
            }
        )
    return wanted
