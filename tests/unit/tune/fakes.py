"""Stands in for the stages: a student whose validations are a formula of the recipe's fields.

Writes the draft that the distill stage leaves when its student is trained, and tells the same
events, so that a search over it runs Optuna, SQLite and the study's files for real, in no time.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from potstill import pipeline
from potstill.errors import TrainingError
from potstill.recipe import Recipe

STEPS = (0, 2, 4, 6)
BEST_RATE = 1e-3
DIVERGES = 0.05

STUDY: dict[str, Any] = {
    "name": "fake",
    "recipe": "quickstart",
    "search": {
        "distill.learning_rate": {"low": 1e-5, "high": 1e-2, "log": True},
        "distill.temperature": {"choices": [1.0, 2.0]},
    },
    "objective": {"validation_kl": "minimize"},
    "trials": 6,
    "random_trials": 3,
}


def curve(recipe: Recipe) -> list[float]:
    """KL at each of `STEPS`: best at a rate of 1e-3, a little worse at a temperature of 2."""
    away = math.log10(recipe.distill.learning_rate / BEST_RATE) ** 2
    soft = 0.1 * (recipe.distill.temperature - 1)
    return [3.0] + [0.2 + away + soft + 1 / step for step in STEPS[1:]]


class FakeRuns:
    """Put in place of `pipeline.run`. `calls`: the trained recipes, in order."""

    def __init__(self) -> None:
        self.calls: list[Recipe] = []
        self.kill_at: tuple[int, int] | None = None
        """(call, place of the validation) at which the process kills itself."""

    def __call__(
        self,
        recipe: Recipe,
        project: Path,
        *,
        until: str,
        watch: Any,
        folder: Path,
        pulse: Any,
        threads: int | None = None,
    ) -> Any:
        if until != "distill":
            return SimpleNamespace(artifact=lambda stage: SimpleNamespace(digest=f"of {stage}"))
        self.calls.append(recipe)
        if recipe.distill.learning_rate >= DIVERGES:
            raise TrainingError("The loss is not finite.", "Lower distill.learning_rate.")
        text = recipe.distill.model_dump_json()
        key = hashlib.sha256(text.encode()).hexdigest()[:32]
        draft = pipeline.store_of(project).root / "distill" / f"{key}.draft"
        watch({"stage": "distill", "kind": "started", "key": key, "resumed": draft.exists()})
        (draft / "data").mkdir(parents=True, exist_ok=True)
        (draft / "work").mkdir(exist_ok=True)
        values = curve(recipe)
        told = "spans" if recipe.distill.alignment.used else "kl"
        for place, (step, value) in enumerate(zip(STEPS, values, strict=True)):
            pulse()
            self._metric(watch, f"validation_{told}", step, value, "distilled")
            if self.kill_at == (len(self.calls), place):
                os.kill(os.getpid(), signal.SIGKILL)
        ratio = recipe.distill.student.parameters_ratio
        self._left(draft, told, values, round(1e6 * ratio))
        self._metric(watch, f"validation_{told}", 0, 3.0, "finetuned")
        raise AssertionError("a trial that needs the student alone must end here")

    def _metric(self, watch: Any, name: str, step: int, value: float, model: str) -> None:
        event = {"stage": "distill", "kind": "metric", "name": name, "value": value}
        watch({**event, "step": step, "model": model})

    def _left(self, draft: Path, told: str, values: list[float], parameters: int) -> None:
        validation = [
            {"step": step, "ce": value, "agreement": 1 / value}
            | dict.fromkeys((told, f"{told}_answer"), value)
            | ({"bits_per_byte": value / 2} if told == "spans" else {})
            for step, value in zip(STEPS, values, strict=True)
        ]
        best = STEPS[values.index(min(values))]
        mark = {"history": {"validation": validation}, "best_step": best}
        (draft / "work" / "distilled.json").write_text(json.dumps(mark))
        surgery = {"parameters": {"student": parameters}}
        (draft / "data" / "surgery.json").write_text(json.dumps(surgery))
