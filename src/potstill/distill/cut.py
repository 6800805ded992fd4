"""One cut of a model: which layers, channels, neurons and heads go, measured on training rows.

In: a model, rows, settings, a target. Out: the smaller model, and what was measured as plain
values. Knows nothing of stages or of training.

Depth alone works on every decoder that `body_of` knows. Widths, and the fit of
what is left, need a family of `models/shape.py`. Of the shapes that meet the target the likeliest
few are made, fitted on a little text and compared on held-out rows; the best is fitted on all.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from potstill.core.events import Emitter
from potstill.distill.batches import Row, evenly
from potstill.distill.student_config import COMPARED_TOKENS, StudentConfig
from potstill.models import importance, likeness, surgery, targets, width
from potstill.models.body import body_of, layers_of
from potstill.models.load import Source
from potstill.models.refit import refit
from potstill.models.shape import FAMILIES, Shape
from potstill.models.skeleton import load_without

ROUND_WORTH = 1.1
"""A shape whose rows quantise well is taken if its KL is at most so many times the best one's."""


@dataclass(frozen=True)
class Text:
    """Calibration text as token ids [1, L] each. Nothing is fitted to `unseen`."""

    calibration: list[Tensor]
    fit: list[Tensor]
    unseen: list[Tensor]


@dataclass(frozen=True)
class Cut:
    """A smaller model, and what was measured on the way to it."""

    student: Any
    report: dict[str, Any]


@dataclass(frozen=True)
class _Tried:
    """A shape that was made, and what was measured of it."""

    student: Any
    shape: Shape
    row: dict[str, Any]
    parts: width.Parts


def check(settings: StudentConfig, model: Any) -> None:
    """Errors: ModelError if the model cannot be cut so, before anything is measured."""
    axes = _axes(settings, model)
    if axes != "depth":
        targets.find(
            importance.shape_of(model), target_of(settings, model), axes, settings.round_to
        )
    elif settings.drop_layers is None:
        surgery.drops_for(model, target_of(settings, model))
    else:
        surgery.check_count(settings.drop_layers, len(layers_of(body_of(model))))


def target_of(settings: StudentConfig, model: Any) -> targets.Target:
    """The size that the settings ask of a student of this model."""
    parameters = surgery.parameters_of(model)
    return settings.target(parameters, parameters - surgery.unread_parameters(model))


def text_of(
    rows: Sequence[Row], held_out: Sequence[Row], settings: StudentConfig, device: torch.device
) -> Text:
    """Rows in even distances. Held-out ones decide between students, as they do in training."""
    made = (
        _spread(rows, settings.calibration_tokens),
        _spread(rows, settings.fit_tokens),
        _spread(held_out, settings.calibration_tokens),
    )
    return Text(*([ids.to(device) for ids in some] for some in made))


def cut(
    settings: StudentConfig,
    model: Any,
    target: targets.Target | None,
    text: Text,
    events: Emitter,
    *,
    asked: Any = None,
) -> Cut:
    """Cut `model`, which is left as it is, to the target (None: as `drop_layers` says).

    asked: on which layers are tried, if not on the model: it in a faster precision, or what it
    became by correction.
    Errors: ModelError for an architecture or a size that cannot be.
    """
    asked = model if asked is None else asked
    known = model.config.get_text_config().model_type in FAMILIES
    axes, shapes, rounding = _axes(settings, model), [], settings.round_to
    if axes == "depth":
        counts = [settings.drop_layers or 0 if target is None else surgery.drops_for(model, target)]
    else:
        assert target is not None
        whole = importance.shape_of(model)
        found = targets.find(whole, target, axes, settings.round_to)
        shapes, rounding = found.shapes[: settings.candidates], found.round_to
        counts = [whole.layers - shape.layers for shape in shapes]
        if rounding != settings.round_to:
            events.warning(
                f"No size that is a multiple of {settings.round_to} is small enough, so the "
                f"student's are multiples of {rounding}; some quantisations will be larger."
            )
    order, report = _order(settings, asked, max(counts), text, events)
    report |= {"axes": axes, "round_to": rounding}
    if not known:
        student = surgery.drop_layers(copy.deepcopy(model), order[: counts[0]])
        if settings.refit and counts[0]:
            events.warning(
                f"{type(model).__name__} is of no family whose layers are known, so what is left "
                "of it is not fitted."
            )
        report |= {"dropped": sorted(order[: counts[0]]), "kl": _rounded(model, student, text)}
        return Cut(student, report)
    shape = importance.shape_of(model)
    if not shapes:
        shapes = [replace(shape, layers=shape.layers - counts[0])]
    measured = importance.measure(model, text.fit)
    brief = text if len(shapes) == 1 else replace(text, fit=_thinned(text.fit, COMPARED_TOKENS))
    best: _Tried | None = None
    tried = []
    for number, wanted in enumerate(shapes):
        events.progress(number, len(shapes), "shapes", step="surgery")
        dropped = order[: shape.layers - wanted.layers]
        kept = [layer for layer in range(shape.layers) if layer not in dropped]
        parts = width.choose(shape, wanted, measured, kept)
        student, figures = _carve(settings, model, parts, measured, brief)
        row = {**wanted.sizes(), **figures, "dropped": sorted(dropped)}
        tried.append(row)
        if best is None or _better((wanted, row), (best.shape, best.row), settings.round_to):
            best = _Tried(student, wanted, row, parts)
        del student
    assert best is not None
    student, row = best.student, best.row
    if settings.refit and len(brief.fit) < len(text.fit):
        student, figures = _carve(settings, model, best.parts, measured, text)
        row = row | figures
    events.progress(len(shapes), len(shapes), "shapes", step="surgery")
    report |= {"tried": tried, **row}
    return Cut(student, report)


def _axes(settings: StudentConfig, model: Any) -> targets.Axes:
    return settings.along(model.config.get_text_config().model_type)


def cut_streamed(
    settings: StudentConfig, model: Any, source: Source, text: Text, events: Emitter
) -> Cut:
    """Cut a teacher that is read layer by layer: the layers of least influence are not read at all.

    model: it runs, though its layers are in memory one at a time. source: what the rest is read
    from. Nothing is fitted. Errors: ModelError for an architecture or a size that cannot be.
    """
    count = settings.drop_layers
    if count is None:
        count = surgery.drops_for(model, target_of(settings, model))
    order, report = _order(settings, model, count, text, events)
    student = load_without(source, order[:count])
    return Cut(student, report | {"axes": "depth", "dropped": sorted(order[:count])})


def _order(
    settings: StudentConfig, model: Any, count: int, text: Text, events: Emitter
) -> tuple[list[int], dict[str, Any]]:
    """The layers in the order in which they go, and what was measured."""
    influence = surgery.layer_influence(model, text.calibration)
    removals: list[surgery.Dropped] = []
    if settings.method == "greedy":
        events.progress(0, max(1, count), "layers", step="surgery")
        removals = surgery.greedy_drops(
            model,
            text.calibration,
            count,
            lambda at, of: events.progress(at, of, "layers", step="surgery"),
        )
        order = [removal.layer for removal in removals]
    else:
        order = surgery.least_influential(influence, count)
    return order, {
        "method": settings.method,
        "influence": [round(value, 6) for value in influence],
        "removals": [{"layer": removal.layer, "kl": round(removal.kl, 6)} for removal in removals],
        "calibration_tokens": sum(ids.numel() for ids in text.calibration),
        "fit_tokens": sum(ids.numel() for ids in text.fit),
    }


def _carve(
    settings: StudentConfig,
    model: Any,
    parts: width.Parts,
    measured: importance.Importance,
    text: Text,
) -> tuple[Any, dict[str, Any]]:
    """The student of these parts, fitted if that helps, and its KL to `model` before and after."""
    student = width.carve(model, parts, measured.shares)
    cut_kl = _rounded(model, student, text)
    if not settings.refit:
        return student, {"kl": cut_kl, "kl_before_fit": cut_kl, "fitted": False}
    fitted = refit(model, width.carve(model, parts, measured.shares), parts, text.fit)
    fitted_kl = _rounded(model, fitted, text)
    figures = {"kl": min(cut_kl, fitted_kl), "kl_before_fit": cut_kl, "fitted": fitted_kl < cut_kl}
    return (fitted if fitted_kl < cut_kl else student), figures


def _better(
    new: tuple[Shape, dict[str, Any]], old: tuple[Shape, dict[str, Any]], round_to: int
) -> bool:
    """Whether the new one starts nearer to the model; round sizes are worth a little."""

    def price(one: tuple[Shape, dict[str, Any]]) -> float:
        return float(one[1]["kl"]) * (1 if targets.is_round(one[0], round_to) else ROUND_WORTH)

    return price(new) < price(old)


def _rounded(model: Any, student: Any, text: Text) -> float:
    return round(likeness.kl(model, student, text.unseen), 6)


def _thinned(batches: Sequence[Tensor], tokens: int) -> list[Tensor]:
    """Every so many of the batches, about `tokens` in all: they lie in the order of the rows."""
    stride = max(1, round(sum(ids.numel() for ids in batches) / tokens))
    return list(batches[::stride])


def _spread(rows: Sequence[Row], tokens: int) -> list[Tensor]:
    """Whole rows in even distances, one a batch, up to `tokens`; the last one is cut to fit."""
    mean = sum(len(row.ids) for row in rows) / len(rows)
    count = min(len(rows), max(1, round(tokens / mean)))
    chosen, left = [], tokens
    for row in evenly(rows, count):
        ids = row.ids[:left]
        left -= len(ids)
        if len(ids) > 1:
            chosen.append(torch.tensor([ids]))
    return chosen
