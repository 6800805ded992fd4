"""The last check before the first step: a few rows, computed plainly, against the real machinery.

In: the loss as it will be trained on, the live teacher, the rows. Out: nothing, or one
TrainingError. Knows nothing of how the machinery works: everything here is computed again from the
models' own logits, row by row, without packing, fusing, caching or splitting.

What other projects got wrong without noticing shows here as a number that differs: a loss divided
twice or by the wrong count, T^2 on the value and not on the gradient, a mixture that lost a part, a
term without a gradient, layers that are off by one, a truncated divergence below zero.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from potstill.distill import attention
from potstill.distill.aligned import AlignedTokens, source_of
from potstill.distill.batches import Row, RowSet
from potstill.distill.families import Family
from potstill.distill.layers import LayerStates
from potstill.distill.mixture import Mixture, Teachers, parts_of
from potstill.distill.objective import ActiveTokens
from potstill.distill.plain import Found, Heard, Plain, Told, gradient
from potstill.distill.ranks import Ranks
from potstill.distill.signals import HiddenStates, LiveTeacher, Samples, TeacherTokens, TopK
from potstill.distill.steps import Step, Steps
from potstill.distill.terms import COUNTED_BY, TermLoss, Weights
from potstill.errors import TrainingError
from potstill.models.body import body_of, layers_of, norm_of
from potstill.models.output import output_layer

BEGINNING, END = 24, 8
"""Tokens of the rows on which layouts are tried."""
EXACT, ROUNDED = 1e-3, 0.1
"""Largest relative difference that rounding explains: of fp32, and of a teacher in bf16 or int8."""
MISHEARD = 0.05
"""Nats a token between a teacher's rounded states and the teacher read row by row: 0.003 for
SmolLM2-135M, in bf16 and in int8. The words of another token, row or teacher are nats away."""
NOTHING = 1e-4
"""A term below it is rounding: where the student is the teacher, nothing need move."""
LEAST_SHARE = 0.05
"""Where student and teacher are nearly alike, differences are compared with this of the
cross-entropy's value and gradient."""
ROUNDED_SHARE = 0.15
"""The same for the gradient where a teacher with another tokenizer is rounded. Its noise goes with
the root of the KL between the rounded and the exact teacher, 0.001 nats in bf16; the gradient
itself with the root of the KL to the student. A student at 0.24 nats of SmolLM2-135M had 0.7% of
the cross-entropy's gradient as noise, which was 15% of its own."""


@torch.no_grad()
def says_the_same(model: Any, rows: Sequence[Row], *, packed: bool, share: bool) -> bool:
    """Whether the model's states in that layout are those of single rows under its own attention.

    If so it is left prepared for the layout, else as it was.
    """
    config = body_of(model).config
    window = getattr(config, "sliding_window", None) or 0
    longest = max(len(row.ids) for row in rows)
    beginning = min(max(BEGINNING, window + END), max(4, longest - END))
    base = max(rows, key=lambda row: len(row.ids)).ids
    ends = (base[-END:], base[:END])
    made = [Row("probe", (*base[:beginning], *end), 1) for end in ends]
    made.append(Row("probe", tuple(reversed(base[:END])), 1))
    families = [(0, 1), (2,)] if share else [(0,), (1,), (2,)]
    was_training = model.training
    model.eval()
    body, device = body_of(model), output_layer(model).weight.device
    alone = [
        body(input_ids=torch.tensor([row.ids], device=device), use_cache=False).last_hidden_state[0]
        for row in made
    ]
    if packed:
        attention.use(model)
    data = RowSet(made, families, packed)
    batch = data.collate(families, ActiveTokens("all", None), padding=0).to(device)
    try:
        states = body(**batch.inputs()).last_hidden_state.flatten(0, 1)
    except (TypeError, ValueError, RuntimeError, IndexError):
        states = None  # a model that takes no such arguments
    model.train(was_training)
    tolerance = EXACT if next(model.parameters()).dtype == torch.float32 else ROUNDED
    same = states is not None and all(
        _apart(states[span.flat().to(device)], alone[number]) < tolerance
        for number, span in zip(batch.rows, batch.spans, strict=True)
    )
    if not same:
        attention.unuse(model)
    return same


def check_loss(
    loss: TermLoss,
    teacher: LiveTeacher,
    data: RowSet,
    padding: int,
    families: Sequence[Family] | None = None,
    told: Told | None = None,
) -> None:
    """Each term, and all together, on a few rows, against a plain computation.

    Divergence and cross-entropy: value and gradient; a top-k divergence within its bounds, a
    sampled one, hidden states and attention maps that they move the student. loss: of the student
    before adapters or compiling, with products in fp32, so that what differs is a mistake and not
    rounding. families: on which; None: `chosen` ones. told: of their rows, where there are several
    teachers; `teacher` is the first then. Errors: TrainingError that names the term and what is
    wrong with it.
    """
    families = list(families or chosen(data, loss.objective.active))
    whole, split = (
        Steps(data, [micros], loss.objective.active, padding, Ranks())[0]
        for micros in ([families], [[family] for family in families])
    )
    was_training = loss.student.training
    loss.student.eval()  # dropout would be drawn anew for each computation
    try:
        if loss.hidden_pairs:
            check_layers(loss.student)
            check_layers(teacher.model)
        _check_numbers(loss, data, whole)
        weights = Weights.highest(loss.objective)  # a schedule may be 0 at any given moment
        numbers = [one for family in families for one in family]
        taught = loss.objective.active.kd
        said = loss.signal.tokens(data.rows, whole.batches[0]) if taught else None
        heard = _rounded(loss, teacher, whole, said)
        plain = Plain(loss, teacher, data, numbers, told, heard)
        if not plain.misheard <= MISHEARD:
            raise _mistaken(
                f"What the loss hears of the teacher is {plain.misheard:.2g} nats a token away "
                "from what the teacher says."
            )
        total: Tensor | None = None
        asked = 0.0
        for name, alone in weights.alone():
            if not whole.totals[COUNTED_BY[name]]:
                continue
            found = _engine(loss, data, whole, alone)
            _check_term(name, said if name == "kd" else None, found, plain, getattr(alone, name))
            total = found.gradient if total is None else total + found.gradient
            asked += abs(found.value)
        if total is None:
            raise _mistaken("No term has an active token on the probe's rows.")
        if asked <= NOTHING:
            raise TrainingError(
                "The student says what the teacher says, and nothing moves it.",
                "Cut layers (distill.student), use another student, or set distill.ce_weight.",
            )
        together, apart = (_engine(loss, data, step, weights) for step in (whole, split))
        exact = next(teacher.model.parameters()).dtype == torch.float32
        tolerance = EXACT if exact else ROUNDED
        if _apart(together.gradient, total) > tolerance:
            raise _mistaken("The loss of all terms together has another gradient than their sum.")
        if _apart(together.gradient, apart.gradient) > tolerance:
            raise _mistaken("The gradient depends on how a step is split into micro-batches.")
    finally:
        loss.student.train(was_training)
        loss.student.zero_grad(set_to_none=True)


@torch.no_grad()
def _check_numbers(loss: TermLoss, data: RowSet, step: Step) -> None:
    """Errors: TrainingError if the teacher or the student says what is not a finite number."""
    names = ", ".join(data.rows[row].id for batch in step.batches for row in batch.rows)
    device = next(loss.student.parameters()).device
    for batch in (one.to(device) for one in step.batches):
        if loss.teacher_is_broken(data.rows, batch):
            raise TrainingError(
                f"What the teacher says of rows {names} is not all finite numbers.",
                "Use distill.precision: fp32, or another teacher.",
            )
        if not torch.isfinite(loss.states(batch)).all():
            raise TrainingError(
                f"The student's states of rows {names} are not all finite numbers.",
                "Its weights are damaged; use another student, or cut it again.",
            )


@torch.no_grad()
def check_layers(model: Any) -> None:
    """Layer n must be the n-th of the model's own hidden states, and the last one the last.

    Errors: TrainingError if they are off by one.
    """
    body, device = body_of(model), next(model.parameters()).device
    ids = torch.arange(1, 9, device=device).unsqueeze(0)
    numbers = range(1, len(layers_of(body)) + 1)
    with LayerStates(model, numbers) as seen:
        known = body(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
    right = all(torch.equal(seen[n], known[n]) for n in numbers[:-1])
    if not right or not torch.allclose(norm_of(body)(seen[len(numbers)]), known[-1]):
        raise _mistaken("The layers of hidden states are off by one or more.")


def _check_term(
    name: str,
    said: TeacherTokens | Mixture | AlignedTokens | None,
    found: Found,
    plain: Plain,
    weight: float,
) -> None:
    """said: by the teachers, of the divergence. Errors: TrainingError if a term says or does
    something else than it should."""
    moves = float(found.gradient.norm()) > 0
    if abs(found.value) > NOTHING * weight and not moves:
        raise _mistaken(f"The term {name} has a weight, but it does not move the student.")
    if name not in ("kd", "ce"):
        return
    words = [] if isinstance(said, AlignedTokens) else parts_of(said)
    if any(isinstance(one, Samples) for one in words):
        return  # right on the average alone
    expected = plain.found[name]
    scale = plain.found["ce"]  # what a difference is compared with where models are nearly alike
    value, least = weight * expected.value, LEAST_SHARE * weight * scale.value
    if any(isinstance(one, TopK) for one in words):
        # Words that are put together make every divergence smaller, but for one whose own
        # weighting looks at single words.
        adaptive = "adaptive_kl" in plain.loss.objective.shares
        if found.value < -least or (found.value > value + least and not adaptive):
            raise _mistaken(
                f"The divergence over the teacher's likeliest words is {found.value:.4g}, outside "
                f"of 0 and the full one, {value:.4g}."
            )
        return
    exact = name == "ce" or plain.heard is not None or _is_exact(plain.loss, plain.teacher, words)
    tolerance = EXACT if exact else ROUNDED
    if abs(found.value - value) > tolerance * max(abs(value), least):
        raise _mistaken(
            f"The term {name} is {found.value:.5g} on the probe's rows; computed plainly it is "
            f"{value:.5g}."
        )
    gradient, share = weight * expected.gradient, LEAST_SHARE if exact else ROUNDED_SHARE
    floor = share * weight * scale.gradient.norm()
    apart = (found.gradient - gradient).norm() / torch.maximum(gradient.norm(), floor)
    if apart > tolerance:
        raise _mistaken(
            f"The gradient of the term {name} is {float(apart):.0%} off the one computed plainly, "
            "though its value is right."
        )


def _is_exact(loss: TermLoss, teacher: LiveTeacher, words: Sequence[TeacherTokens]) -> bool:
    """Whether the loss hears the teachers without rounding; a file's states are rounded."""
    signal = loss.signal
    sources = signal.signals if isinstance(signal, Teachers) else (source_of(signal),)
    if not all(isinstance(one, LiveTeacher) for one in sources):
        return False
    if not words:  # another tokenizer's
        return teacher.output.weight.dtype == torch.float32
    return {one.states.dtype for one in words if isinstance(one, HiddenStates)} == {torch.float32}


def _rounded(
    loss: TermLoss,
    teacher: LiveTeacher,
    step: Step,
    said: TeacherTokens | Mixture | AlignedTokens | None,
) -> Heard | None:
    """The teachers' words if they are whole distributions and rounded."""
    if said is None or isinstance(said, AlignedTokens):
        return None
    batch = step.batches[0]
    parts = (
        {0: (batch.positions, said)}
        if not isinstance(said, Mixture)
        else {part.teacher: (batch.positions[part.at], part.said) for part in said.parts}
    )
    whole = {
        place: (positions, one)
        for place, (positions, one) in parts.items()
        if isinstance(one, HiddenStates)
    }
    if len(whole) < len(parts) or _is_exact(loss, teacher, parts_of(said)):
        return None
    return Heard(batch, whole)


def _engine(loss: TermLoss, data: RowSet, step: Step, weights: Weights) -> Found:
    """The same by the real machinery: a whole step of micro-batches."""
    device = next(loss.student.parameters()).device
    parts = [loss(data.rows, batch.to(device), weights, step.totals)[0] for batch in step.batches]
    return gradient(loss, torch.stack(parts).sum())


def chosen(
    data: RowSet,
    active: ActiveTokens,
    kind: Callable[[Family], Hashable] = lambda family: None,
) -> list[Family]:
    """Those with the fewest row tokens that have all active ones: two if there are as many, and
    one of each kind."""
    order = sorted(data.families, key=lambda family: (data.tokens[family], family))
    found = [
        family
        for family in order
        if all(
            count > 0 or vars(active)[term] is None
            for term, count in data.active_counts(family, active).items()
        )
    ] or order
    firsts = list({kind(family): family for family in reversed(found)}.values())[::-1]
    others = [family for family in found if family not in firsts]
    return [*firsts, *others[: max(0, 2 - len(firsts))]]


def _apart(one: Tensor, other: Tensor) -> float:
    """Norm of the difference over the norm of `other`."""
    return float((one.float() - other.float()).norm() / other.float().norm().clamp_min(1e-30))


def _mistaken(what: str) -> TrainingError:
    return TrainingError(
        what, "Do not train on it: whatever computes the loss must be mended first."
    )
