"""Per-example scores of each model into figures with intervals, and paired differences.

In: one `ExampleScores` an example and model, the same examples in the same order. Out: the
`metrics` and `differences` of results.json. Knows nothing of models or files.

Token-level figures are averaged over tokens and resampled by example, see `core/scoring.py`:

    kl, reverse_kl (_answer)        nats a token, teacher || model and model || teacher
    agreement, top5 (_answer)       share of tokens, share of the five likeliest, 0 to 1
    rank_correlation (_answer)      Spearman's, over the teacher's ten likeliest tokens
    ece (_answer)                   expected calibration error of the model's own likeliest token
    perplexity, perplexity_answer   exp of the mean nats a token of the text itself; the answer's
                                    is of the gold answer given its prompt
    bits_per_byte (_answer)         log-loss of the text's bytes over log 2; the answer's with its
                                    end, given its prompt
    span_kl, span_kl_answer         nats a span, where the tokenizers differ (`apart.py`)
    marked_kl, same_span            nats, share of rows, of students that mark answers (`marked.py`)
    f1, em, bleu, chrf, rouge…      of the generated answer, mean over examples (`answer_scores.py`)
    corpus_bleu                     of the answers whose gold answer has at least four tokens
    refusal_rate, grounded          share of answers; share of an answer's words, mean over answers
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from potstill.core.scoring import (
    Floats,
    Interval,
    Transform,
    bootstrap_ratio,
    bootstrap_statistic,
    paired_bootstrap_ratio,
    paired_bootstrap_statistic,
)
from potstill.evaluate.answer_scores import AnswerScores
from potstill.evaluate.overlap import corpus_bleu

if TYPE_CHECKING:
    from potstill.evaluate.apart import SpanScores
    from potstill.evaluate.fidelity import FidelityScores
    from potstill.evaluate.marked import MarkScores

PAIRS = (
    ("distilled", "undistilled"),
    ("distilled", "finetuned"),
    ("teacher", "distilled"),
    ("teacher", "uncorrected"),
)


@dataclass(frozen=True)
class ExampleScores:
    """All scores of one model on one example; without fidelity if only its answer is known."""

    fidelity: FidelityScores | SpanScores | MarkScores | None
    answer: AnswerScores


@dataclass(frozen=True)
class Metric:
    """Where a figure's sums and weights are found, and what is done to their ratio.

    Without `weight` it is a score of the answer, and its mean over the examples that have it.
    """

    total: str
    weight: str | None = None
    transform: Transform | None = None


@dataclass(frozen=True)
class Summed:
    """A figure that is a function of sums over all examples, such as a corpus BLEU."""

    columns: Callable[[ExampleScores], Sequence[float]]
    """What one example adds; nothing if it is no part of the figure."""
    statistic: Transform


def _bits(nats: Any) -> Any:
    return nats / np.log(2)


def calibration_error(sums: Floats) -> Floats:
    """Sums of (rows, gap of each bin) -> sum of the gaps' sizes over the rows."""
    found: Floats = np.abs(sums[..., 1:]).sum(-1) / np.maximum(sums[..., 0], 1)
    return found


def _gaps(ending: str) -> Callable[[ExampleScores], Sequence[float]]:
    rows = "answer_tokens" if ending else "tokens"

    def columns(scores: ExampleScores) -> Sequence[float]:
        found = scores.fidelity
        return (getattr(found, rows), *getattr(found, f"gaps{ending}"))

    return columns


ANSWERS: dict[str, Metric | Summed] = {
    "f1": Metric("f1"),
    "em": Metric("em"),
    "bleu": Metric("bleu"),
    "corpus_bleu": Summed(lambda scores: scores.answer.bleu_counts, corpus_bleu),
    "chrf": Metric("chrf"),
    "rouge1": Metric("rouge1"),
    "rouge2": Metric("rouge2"),
    "rougeL": Metric("rougeL"),
    "refusal_rate": Metric("refused"),
    "grounded": Metric("grounded"),
}
"""Of answers alone: what stored predictions can be scored for without a model."""
FIDELITY: dict[str, Metric | Summed] = {
    "kl": Metric("kl", "tokens"),
    "kl_answer": Metric("kl_answer", "answer_tokens"),
    "reverse_kl": Metric("reverse_kl", "tokens"),
    "reverse_kl_answer": Metric("reverse_kl_answer", "answer_tokens"),
    "agreement": Metric("agree", "tokens"),
    "agreement_answer": Metric("agree_answer", "answer_tokens"),
    "top5": Metric("top5", "tokens"),
    "top5_answer": Metric("top5_answer", "answer_tokens"),
    "rank_correlation": Metric("rank", "tokens"),
    "rank_correlation_answer": Metric("rank_answer", "answer_tokens"),
    "ece": Summed(_gaps(""), calibration_error),
    "ece_answer": Summed(_gaps("_answer"), calibration_error),
    "perplexity": Metric("nll", "tokens", np.exp),
    "perplexity_answer": Metric("nll_answer", "answer_tokens", np.exp),
    "bits_per_byte": Metric("nll", "bytes", _bits),
    "bits_per_byte_answer": Metric("nll_answer", "bytes_answer", _bits),
}
"""Of models that share the teacher's tokenizer."""
APART: dict[str, Metric | Summed] = {
    "span_kl": Metric("divergence", "spans"),
    "span_kl_answer": Metric("divergence_answer", "spans_answer"),
    "agreement": Metric("agree", "spans"),
    "agreement_answer": Metric("agree_answer", "spans_answer"),
    "bits_per_byte": Metric("nats", "bytes", _bits),
    "bits_per_byte_answer": Metric("nats_answer", "bytes_answer", _bits),
}
"""Of models whose tokenizer is not the teacher's, and of that teacher."""
MARKED: dict[str, Metric | Summed] = {
    "marked_kl": Metric("kl", "rows"),
    "same_span": Metric("same", "rows"),
}
"""Of students that mark answers, and were taught by a teacher's distributions over spans."""
KEPT_SCORES = tuple(one.name for one in fields(AnswerScores) if one.name not in ("bleu_counts",))
"""The scores that each stored prediction carries."""


def metrics_of(scores: Sequence[ExampleScores]) -> dict[str, Metric | Summed]:
    """The figures that such scores have."""
    kind = scores[0].fidelity
    if kind is None:
        return ANSWERS
    # Only here: answers alone are compared where nothing computes with models.
    from potstill.evaluate.apart import SpanScores
    from potstill.evaluate.fidelity import FidelityScores
    from potstill.evaluate.marked import MarkScores

    tables = {SpanScores: APART, MarkScores: MARKED, FidelityScores: FIDELITY}
    return tables[type(kind)] | ANSWERS


def columns_of(scores: Sequence[ExampleScores], metric: Metric | Summed) -> list[Sequence[float]]:
    """What each example adds to a figure: (sum, weight), or a `Summed`'s columns; empty: none."""
    if isinstance(metric, Summed):
        return [metric.columns(one) for one in scores]
    if metric.weight is None:
        values = [getattr(one.answer, metric.total) for one in scores]
        return [() if value is None else (value, 1.0) for value in values]
    return [
        (getattr(one.fidelity, metric.total), getattr(one.fidelity, metric.weight))
        for one in scores
    ]


def figures(
    scores: Sequence[ExampleScores], seed: int, resamples: int, level: float
) -> dict[str, Interval]:
    """Every metric of one model with its interval.

    Metrics that fewer than two examples have are left out: nothing can be said of their spread.
    """
    found = {}
    for name, metric in metrics_of(scores).items():
        rows = np.array([row for row in columns_of(scores, metric) if row], dtype=np.float64)
        if len(rows) < 2:
            continue
        if isinstance(metric, Summed):
            found[name] = bootstrap_statistic(rows, metric.statistic, seed, resamples, level)
        else:
            totals, weights = rows.T.tolist()
            found[name] = bootstrap_ratio(totals, weights, seed, resamples, level, metric.transform)
    return found


def differences(
    scores: Mapping[str, Sequence[ExampleScores]],
    seed: int,
    resamples: int,
    level: float,
    pairs: Sequence[tuple[str, str]] = PAIRS,
) -> dict[str, dict[str, dict[str, Any]]]:
    """`{"a_minus_b": {metric: {value, low, high, n, significant}}}` for `pairs` that are there.

    Over the examples for which both have the metric. `significant` is true only if the paired
    interval lies wholly on one side of zero.
    """
    found = {}
    for a, b in pairs:
        if a in scores and b in scores:
            pair = {}
            for name, metric in metrics_of(scores[a]).items():
                interval = difference(scores[a], scores[b], metric, seed, resamples, level)
                if interval is not None:
                    pair[name] = {**interval.as_dict(), "significant": interval.excludes_zero}
            found[f"{a}_minus_{b}"] = pair
    return found


def difference(
    a: Sequence[ExampleScores],
    b: Sequence[ExampleScores],
    metric: Metric | Summed,
    seed: int,
    resamples: int,
    level: float,
) -> Interval | None:
    """One paired difference; None if fewer than two examples have the metric on both sides."""
    both = zip(columns_of(a, metric), columns_of(b, metric), strict=True)
    kept = [(one, other) for one, other in both if one and other]
    if len(kept) < 2:
        return None
    left, right = (np.array(side, dtype=np.float64) for side in zip(*kept, strict=True))
    if isinstance(metric, Summed):
        return paired_bootstrap_statistic(left, right, metric.statistic, seed, resamples, level)
    (totals, weights), (others, _) = left.T.tolist(), right.T.tolist()
    return paired_bootstrap_ratio(totals, others, weights, seed, resamples, level, metric.transform)
