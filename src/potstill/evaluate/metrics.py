"""Per-example scores of each model into figures with intervals, and paired differences.

In: one `ExampleScores` an example and model, the same examples in the same order. Out: the
`metrics` and `differences` of results.json. Knows nothing of models or files.

Token-level figures are averaged over tokens and resampled by example, see `core/scoring.py`:

    kl, kl_answer                   nats a token, teacher || model
    agreement, agreement_answer     share of tokens, 0 to 1
    perplexity, perplexity_answer   exp of the mean nats a token of the text itself; the answer's
                                    is of the gold answer given its prompt
    span_kl, span_kl_answer         nats a span, where the tokenizers differ (`apart.py`)
    bits_per_byte (_answer)         log-loss of the text's bytes over log 2, there too; the answer's
                                    with its end, given its prompt
    f1, em                          of the generated answer, SQuAD v1.1, mean over examples, 0 to 1
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from potstill.core.scoring import (
    Interval,
    Transform,
    bootstrap_ratio,
    paired_bootstrap_ratio,
)
from potstill.evaluate.apart import SpanScores
from potstill.evaluate.fidelity import FidelityScores

PAIRS = (
    ("distilled", "undistilled"),
    ("distilled", "finetuned"),
    ("teacher", "distilled"),
    ("teacher", "uncorrected"),
)


@dataclass(frozen=True)
class ExampleScores:
    """All scores of one model on one example; f1 and em are None without a gold answer."""

    fidelity: FidelityScores | SpanScores
    f1: float | None
    em: float | None


@dataclass(frozen=True)
class Metric:
    """Where a figure's sums and weights are found, and what is done to their ratio."""

    total: str
    weight: str | None
    transform: Transform | None = None


METRICS: dict[str, Metric] = {
    "kl": Metric("kl", "tokens"),
    "kl_answer": Metric("kl_answer", "answer_tokens"),
    "agreement": Metric("agree", "tokens"),
    "agreement_answer": Metric("agree_answer", "answer_tokens"),
    "perplexity": Metric("nll", "tokens", np.exp),
    "perplexity_answer": Metric("nll_answer", "answer_tokens", np.exp),
    "f1": Metric("f1", None),
    "em": Metric("em", None),
}


def _bits(nats: Any) -> Any:
    return nats / np.log(2)


APART: dict[str, Metric] = {
    "span_kl": Metric("divergence", "spans"),
    "span_kl_answer": Metric("divergence_answer", "spans_answer"),
    "agreement": Metric("agree", "spans"),
    "agreement_answer": Metric("agree_answer", "spans_answer"),
    "bits_per_byte": Metric("nats", "bytes", _bits),
    "bits_per_byte_answer": Metric("nats_answer", "bytes_answer", _bits),
    "f1": METRICS["f1"],
    "em": METRICS["em"],
}
"""Of models whose tokenizer is not the teacher's, and of that teacher."""


def _metrics(scores: Sequence[ExampleScores]) -> dict[str, Metric]:
    return APART if isinstance(scores[0].fidelity, SpanScores) else METRICS


def _columns(scores: Sequence[ExampleScores], metric: Metric) -> tuple[list[float], list[float]]:
    """The metric's sum and weight of each example that has it."""
    if metric.weight is None:
        values = [getattr(score, metric.total) for score in scores]
        kept = [float(value) for value in values if value is not None]
        return kept, [1.0] * len(kept)
    totals = [float(getattr(score.fidelity, metric.total)) for score in scores]
    return totals, [float(getattr(score.fidelity, metric.weight)) for score in scores]


def figures(
    scores: Sequence[ExampleScores], seed: int, resamples: int, level: float
) -> dict[str, Interval]:
    """Every metric of one model with its interval. Errors: InputError for under two examples."""
    found = {}
    for name, metric in _metrics(scores).items():
        totals, weights = _columns(scores, metric)
        found[name] = bootstrap_ratio(totals, weights, seed, resamples, level, metric.transform)
    return found


def differences(
    scores: Mapping[str, Sequence[ExampleScores]], seed: int, resamples: int, level: float
) -> dict[str, dict[str, dict[str, Any]]]:
    """`{"a_minus_b": {metric: {value, low, high, n, significant}}}` for `PAIRS` that are there.

    `significant` is true only if the paired interval lies wholly on one side of zero.
    """
    found = {}
    for a, b in PAIRS:
        if a not in scores or b not in scores:
            continue
        pair = {}
        for name, metric in _metrics(scores[a]).items():
            left, weights = _columns(scores[a], metric)
            right, _ = _columns(scores[b], metric)
            interval = paired_bootstrap_ratio(
                left, right, weights, seed, resamples, level, metric.transform
            )
            pair[name] = {**interval.as_dict(), "significant": interval.excludes_zero}
        found[f"{a}_minus_{b}"] = pair
    return found
