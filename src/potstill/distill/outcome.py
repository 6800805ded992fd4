"""What came of a student's training, as soon as it is trained. Light: no torch here.

In: the stage's events; the folder of its result, or of its draft before the comparison model is
trained. Out: the curves and the best validation of the distilled student, and its size. For those
who do not wait for the whole stage, such as a search. Knows nothing of searches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.core.files import read_json
from potstill.errors import TrainingError

DISTILLED, COMPARED = "distilled", "finetuned"


@dataclass(frozen=True)
class Trained:
    """What a training came to. `history` holds only values that are the same on every run."""

    steps: int
    tokens: int
    stopped_early: bool
    best_step: int
    history: dict[str, list[dict[str, float]]]

    @property
    def summary(self) -> dict[str, Any]:
        """All but the history."""
        return {name: value for name, value in vars(self).items() if name != "history"}


@dataclass(frozen=True)
class StudentOutcome:
    """`validation`: the figures of each validation, by name (`held_out.py` says what they are),
    with its optimizer `step`; `best`: those of the one whose weights were kept."""

    validation: list[dict[str, float]]
    best: dict[str, float]
    parameters: int


def validation_of(event: Mapping[str, Any]) -> tuple[str, int, float] | None:
    """(figure, optimizer step, value) if the event is a validation of the distilled student."""
    name = str(event.get("name", ""))
    if event["kind"] != "metric" or event.get("model") != DISTILLED:
        return None
    if not name.startswith("validation_"):
        return None
    return name.removeprefix("validation_"), int(event["step"]), float(event["value"])


def student_is_trained(event: Mapping[str, Any]) -> bool:
    """Whether the event says that the distilled student is done and saved: the model that it is
    compared with is being trained. Stopped there, the stage goes on from there later."""
    return event.get("model") == COMPARED


def student_outcome(stage_folder: Path) -> StudentOutcome:
    """Read it from the folder of a finished stage, or of a draft whose student is trained.

    Errors: TrainingError if no student is trained there yet.
    """
    data, mark = stage_folder / "data", stage_folder / "work" / f"{DISTILLED}.json"
    try:
        if (data / "history.json").exists():
            validation = read_json(data / "history.json")[DISTILLED]["validation"]
            best_step = read_json(data / "training.json")["models"][DISTILLED]["best_step"]
        else:
            trained = read_json(mark)
            validation, best_step = trained["history"]["validation"], trained["best_step"]
        # A training that never became better than its start keeps its last weights.
        best = next((row for row in validation if row["step"] == best_step), validation[-1])
        parameters = read_json(data / "surgery.json")["parameters"]["student"]
    except (OSError, LookupError) as error:
        raise TrainingError(f"There is no trained student in {stage_folder}.") from error
    return StudentOutcome(validation, best, int(parameters))
