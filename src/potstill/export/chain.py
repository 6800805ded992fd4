"""The way from the teacher to each file, hop by hop: what a hop cost, and what it may cost.

In: evaluate's figures, a file's figures, answers of both ends of a hop. Out: one entry a hop,
nested for programs (`chain` of export.json) and flat for tables (`parity`); ModelError where a
hop exceeds its allowance. Knows nothing of models or files.

A file is compared with the PyTorch student, not with the file that it was made of: so the losses of
two hops cannot add up unseen. A difference of answers fails a hop only if its whole interval is
beyond the allowance; few rows cannot prove a loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.core.scoring import paired_bootstrap, token_f1
from potstill.errors import ModelError

Figure = Mapping[str, Any]
ENOUGH_ROWS = 8
"""A difference of answers on fewer rows proves nothing, whatever its interval."""


@dataclass(frozen=True)
class Allowance:
    """How far a hop's end may be from what it is compared with; None: as far as it is."""

    max_kl: float | None = None
    min_agreement: float | None = None
    max_f1_loss: float | None = None


def student_hop(results: Mapping[str, Any], allowance: Allowance) -> dict[str, Any]:
    """Teacher -> distilled student, by the figures of evaluate. Errors: ModelError."""
    metrics = results["models"]["distilled"]["metrics"]
    difference = results.get("differences", {}).get("teacher_minus_distilled", {}).get("f1")
    hop = {
        "from": "teacher",
        "to": "distilled",
        "compared_with": "teacher",
        "kl": metrics.get("kl"),
        "span_kl": metrics.get("span_kl"),
        "agreement": metrics.get("agreement"),
        "f1_difference": difference and _turned(difference),
    }
    return judged(hop, allowance)


def f1_difference(
    before: Sequence[str | None],
    after: Sequence[str],
    golds: Sequence[Sequence[str]],
    seed: int,
    resamples: int,
    level: float,
) -> dict[str, Any] | None:
    """Mean answer F1 after minus before, with its paired interval; None for fewer than two rows.

    before: None where it did not answer. Rows without a gold answer say nothing.
    """
    pairs = [
        (token_f1(b, some), token_f1(a, some))
        for b, a, some in zip(before, after, golds, strict=True)
        if b is not None and some
    ]
    if len(pairs) < 2:
        return None
    old, new = zip(*pairs, strict=True)
    return paired_bootstrap(new, old, seed, resamples, level).as_dict()


def judged(hop: Mapping[str, Any], allowance: Allowance) -> dict[str, Any]:
    """The hop with its allowance. Errors: ModelError with an account, if it exceeds it."""
    kl, agreement, change = hop.get("kl"), hop.get("agreement"), hop.get("f1_difference")
    faults = []
    # Each written so that a NaN fails.
    if kl and allowance.max_kl is not None and not kl["value"] <= allowance.max_kl:
        faults.append(
            f"its mean KL is {kl['value']:.2g} nats a token (allowed {allowance.max_kl:g})"
        )
    least, loss = allowance.min_agreement, allowance.max_f1_loss
    if agreement and least is not None and not agreement["value"] >= least:
        faults.append(f"they agree in {agreement['value']:.1%} of the cases (needed {least:.1%})")
    if change is not None and change["n"] < ENOUGH_ROWS:
        change = None
    if change is not None and loss is not None and not change["high"] >= -loss:
        faults.append(
            f"its answers' F1 is lower by {-change['high']:.2f} to {-change['low']:.2f} "
            f"(allowed {loss:g})"
        )
    if faults:
        raise ModelError(
            f"The hop {hop['from']} -> {hop['to']} lost more than it may: "
            f"compared with {hop['compared_with']}, {', and '.join(faults)}.",
            _WAYS_OUT.get(str(hop["to"]), _QUANTISED),
        )
    return {**hop, "allowance": vars(allowance).copy(), "holds": True}


_QUANTISED = "Choose a quantisation with more bits (q8_0), or raise its bounds in the recipe."
_CONVERTED = "The conversion is at fault: the file is not the student that was measured."
_WAYS_OUT = {
    "distilled": "Train longer or a larger student, or raise export.student_max_kl and "
    "export.student_max_f1_loss.",
    "merged": "Use a smaller lora.alpha, or distill.adapter: none.",
    "model.onnx": _CONVERTED,
    "model-int8.onnx": "Use model.onnx, or allow it more (allowances).",
    "gguf-f32": _CONVERTED,
    "gguf-f16": _CONVERTED,
}


def flat(hop: Mapping[str, Any]) -> dict[str, Any]:
    """The hop as a row of a table, the same keys for each; numbers are in the hop itself."""
    row: dict[str, Any] = {
        "hop": f"{hop['from']} to {hop['to']}",
        "prompts": hop.get("prompts"),
        "prompt_ids_equal": hop.get("prompt_ids_equal"),
        "stops": hop.get("stops"),
        "tokens": hop.get("tokens"),
        "kl": _shown(hop.get("kl") or hop.get("span_kl"), "{:.2g}"),
        "agreement": _shown(hop.get("agreement"), "{:.1%}"),
        "f1_difference": _shown(hop.get("f1_difference"), "{:+.3f}"),
    }
    return {**row, **hop["allowance"]}


def _shown(figure: Figure | None, form: str) -> str | None:
    if not figure:
        return None
    value, low, high = (form.format(figure[part]) for part in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def _turned(difference: Figure) -> dict[str, Any]:
    """a - b as b - a."""
    return {
        "value": -difference["value"],
        "low": -difference["high"],
        "high": -difference["low"],
        "n": difference["n"],
    }
