"""A study as one self-contained page: no scripts, no network, light, dark and print.

In: a study, its trials, the best of them. Out: report.html in the study's folder, written
atomically. All texts are escaped by the template engine. Knows nothing of how trials are computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from potstill.core.files import write_atomic
from potstill.core.pages import environment
from potstill.evaluate import words
from potstill.tune import charts
from potstill.tune.charts import Point
from potstill.tune.figures import FIGURES, is_validation
from potstill.tune.space import Dimension
from potstill.tune.study import Study
from potstill.tune.trials import Trial
from potstill.tune.words import STATES, shown

FEW = 20  # complete trials below which importance is little more than a guess


def write_page(
    study: Study,
    trials: Sequence[Trial],
    best: Sequence[Trial],
    importance: Mapping[str, float],
    folder: Path,
) -> Path:
    """Write the page and return its path."""
    engine = environment(Path(__file__).parent / "templates")
    complete = [one for one in trials if one.state == "complete"]
    text = engine.get_template("study.html.j2").render(
        study=study.config,
        recipe=study.recipe,
        titles={name: FIGURES[name].title for name in study.config.objective},
        on_test_rows=any(FIGURES[name].on_test_rows for name in study.config.objective),
        counts=_counts(trials),
        seconds=words.duration(sum(one.notes.get("seconds", 0.0) for one in trials)),
        best=[_best(study, one, place) for place, one in enumerate(best, 1)],
        history=_history(study, trials, best),
        front=_front(study, complete, best),
        fields=_fields(study, trials, best),
        coordinates=_coordinates(study, complete, best),
        curves=_curves(study, trials, best),
        importance=[
            {
                "field": name,
                "share": round(100 * share, 1),
                "bar": round(100 * share / (max(importance.values()) or 1.0), 1),
            }
            for name, share in importance.items()
        ],
        few=len(complete) < FEW,
        columns=[one.field for one in study.dimensions],
        rows=[_row(study, one, {other.number for other in best}) for one in trials],
    )
    path = folder / "report.html"
    write_atomic(path, text)
    return path


def _digits(value: float) -> str:
    """Four significant digits; large whole amounts with thousands apart."""
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def _counts(trials: Sequence[Trial]) -> str:
    states = [one.state for one in trials]
    return ", ".join(
        f"{states.count(state)} {text}" for state, text in STATES.items() if state in states
    )


def _best(study: Study, trial: Trial, place: int) -> dict[str, Any]:
    name = "best.yaml" if len(study.config.objective) == 1 else f"best-{place}.yaml"
    return {
        "number": trial.number,
        "file": f"studies/{study.config.name}/{name}",
        "figures": [(FIGURES[one].title, _digits(value)) for one, value in trial.figures.items()],
        "values": [(field, shown(value)) for field, value in trial.values.items()],
    }


def _figure(study: Study, trial: Trial) -> float | None:
    """The first figure, or the last validation of a trial that was given up."""
    name = next(iter(study.config.objective))
    if trial.state == "complete":
        return trial.figures[name]
    return trial.curve[-1][1] if trial.state == "pruned" and trial.curve else None


def _state(trial: Trial, best: Sequence[Trial]) -> str:
    return "best" if any(one.number == trial.number for one in best) else trial.state


def _label(trial: Trial, value: float) -> str:
    return f"trial {trial.number}: {_digits(value)}"


def _history(study: Study, trials: Sequence[Trial], best: Sequence[Trial]) -> list[Markup]:
    """One chart a figure: every trial, and the best of the complete ones so far."""
    found = []
    for index, (name, direction) in enumerate(study.config.objective.items()):
        points, so_far, line = [], float("nan"), []
        for trial in trials:
            value = _figure(study, trial) if index == 0 else trial.figures.get(name)
            if value is None:
                continue
            if trial.state == "complete" and not (
                so_far <= value if direction == "minimize" else so_far >= value
            ):
                so_far = value
            points.append(Point(trial.number, value, _state(trial, best), _label(trial, value)))
            line.append(so_far)
        title = FIGURES[name].title
        found.append(
            charts.trials_chart(
                f"{title}, trial by trial",
                points,
                line,
                direction,
                complete=[one.figures[name] for one in trials if one.figures],
                minimize=direction == "minimize",
            )
        )
    return [chart for chart in found if chart]


def _front(study: Study, complete: Sequence[Trial], best: Sequence[Trial]) -> Markup:
    names = list(study.config.objective)
    if len(names) < 2:
        return Markup("")
    points = [
        Point(one.figures[names[1]], one.figures[names[0]], _state(one, best), f"{one.number}")
        for one in complete
    ]
    titles = [f"{FIGURES[name].title} ({study.config.objective[name]})" for name in names]
    return charts.front_chart("One figure against the other", points, titles[1], titles[0])


def _categories(one: Dimension) -> list[str] | None:
    return None if one.space.choices is None else [shown(value) for value in one.space.choices]


def _fields(study: Study, trials: Sequence[Trial], best: Sequence[Trial]) -> list[Markup]:
    """Each searched field against the first figure."""
    name = next(iter(study.config.objective))
    figures = [(one, _figure(study, one)) for one in trials]
    known = [(one, value) for one, value in figures if value is not None]
    complete = [value for one, value in known if one.state == "complete"]
    found = []
    for one in study.dimensions:
        categories = _categories(one)
        points = [
            Point(
                shown(trial.values[one.field]) if categories else trial.values[one.field],
                value,
                _state(trial, best),
                _label(trial, value),
            )
            for trial, value in known
        ]
        chart = charts.field_chart(
            one.field,
            points,
            FIGURES[name].title,
            log=one.space.log,
            categories=categories,
            complete=complete,
            minimize=study.config.objective[name] == "minimize",
        )
        found.append(chart)
    return [chart for chart in found if chart]


def _coordinates(study: Study, complete: Sequence[Trial], best: Sequence[Trial]) -> Markup:
    """Each complete trial's values and figures as one line."""
    if len(complete) < 2:
        return Markup("")
    axes = []
    for one in study.dimensions:
        categories = _categories(one)
        values = [] if categories else [float(trial.values[one.field]) for trial in complete]
        axis = charts.upright_axis(values, log=one.space.log, categories=categories)
        axes.append((one.field.rpartition(".")[2], axis))
    for name in study.config.objective:
        axes.append((name, charts.upright_axis([trial.figures[name] for trial in complete])))
    lines = [
        (
            _state(trial, best),
            [
                shown(trial.values[one.field]) if one.kind == "choice" else trial.values[one.field]
                for one in study.dimensions
            ]
            + list(trial.figures.values()),
        )
        for trial in complete
    ]
    return charts.coordinates_chart("Complete trials, field by field", axes, lines)


def _curves(study: Study, trials: Sequence[Trial], best: Sequence[Trial]) -> Markup:
    name = next(iter(study.config.objective))
    if not is_validation(name):
        return Markup("")
    lines = [(_state(one, best), one.curve) for one in trials if one.state != "running"]
    return charts.curves_chart("Validations while training", lines, FIGURES[name].title)


def _row(study: Study, trial: Trial, best: set[int]) -> dict[str, Any]:
    return {
        "number": trial.number,
        "best": trial.number in best,
        "state": STATES[trial.state],
        "figures": [
            _digits(trial.figures[name]) if trial.figures else words.MISSING
            for name in study.config.objective
        ],
        "values": [
            shown(trial.values[one.field]) if one.field in trial.values else words.MISSING
            for one in study.dimensions
        ],
        "seconds": words.duration(trial.notes.get("seconds")),
        "reason": str(trial.notes.get("reason", "")),
    }
