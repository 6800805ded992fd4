"""The best trials as recipes that `potstill run` takes.

In: a study and its best trials. Out: best.yaml, or best-1.yaml, best-2.yaml ... for a Pareto front,
in the study's folder; those of earlier fronts are gone. Knows nothing of how they were found.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from potstill.core.files import disk_errors, write_atomic
from potstill.tune.study import Study
from potstill.tune.trials import Trial


def write_recipes(study: Study, best: Sequence[Trial], folder: Path) -> list[Path]:
    """Write each best trial's recipe; the order is that of the trials."""
    single = len(study.config.objective) == 1
    written = []
    for place, trial in enumerate(best, 1):
        name = "best" if single else f"best-{place}"
        path = folder / f"{name}.yaml"
        write_atomic(path, _text(study, trial, f"{study.config.name}-{name}"))
        written.append(path)
    with disk_errors(folder, "write to"):
        for old in folder.glob("best*.yaml"):
            if old not in written:
                old.unlink()
    return written


def _text(study: Study, trial: Trial, name: str) -> str:
    recipe = study.recipe_of(trial.values, name)
    lines = [f"# Trial {trial.number} of the study {study.config.name}."]
    lines += [f"#   {figure} {value:.6g}" for figure, value in trial.figures.items()]
    lines += ["# Found:"]
    lines += [f"#   {field}: {value}" for field, value in trial.values.items()]
    return "\n".join(lines) + "\n" + recipe.to_yaml()
