"""What the evaluate stage hands on: results.json and the lines of predictions.jsonl.

In: every model's scores on the same examples, its size and speed. Out: plain values. Measures
nothing.

results.json holds `models` (figures, by kind of row and by position of the answer's tokens too),
`differences` (paired), `power` (rows that it takes to see a difference), `machine`, `settings`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from potstill.core.files import read_records
from potstill.core.machine import describe
from potstill.evaluate.apart import SpanScores
from potstill.evaluate.contamination import audit, summary
from potstill.evaluate.fidelity import POSITIONS, FidelityScores
from potstill.evaluate.marked import MarkScores
from potstill.evaluate.metrics import (
    KEPT_SCORES,
    PAIRS,
    ExampleScores,
    differences,
    figures,
)
from potstill.evaluate.power import paired_power
from potstill.evaluate.scan import Held, ScoredAnswer
from potstill.records import Example

Scores = Mapping[str, Sequence[ExampleScores]]


@dataclass(frozen=True)
class Resampling:
    """How intervals are made."""

    seed: int
    resamples: int = 2000
    level: float = 0.95

    def figures(self, scores: Sequence[ExampleScores]) -> dict[str, Any]:
        """Every metric of some scores: name -> value, low, high, n."""
        made = figures(scores, self.seed, self.resamples, self.level)
        return {metric: interval.as_dict() for metric, interval in made.items()}


def measured(
    kinds: Sequence[str], scored: Scores, resampling: Resampling
) -> dict[str, dict[str, Any]]:
    """Of each model `metrics`, `by_kind` and `by_position`. kinds: of each row, in its order."""
    places = defaultdict(list)
    for place, kind in enumerate(kinds):
        places[kind].append(place)
    return {
        name: {
            "metrics": resampling.figures(scores),
            "by_kind": {
                kind: resampling.figures([scores[place] for place in some])
                for kind, some in sorted(places.items())
                if len(places) > 1 and len(some) > 1
            },
            "by_position": by_position(scores),
        }
        for name, scores in scored.items()
    }


def audited(
    training: Path,
    examples: Sequence[Example],
    ids: Sequence[str],
    scored: Scores,
    words: int,
    resampling: Resampling,
) -> dict[str, Any]:
    """The contamination audit; where rows were seen in training, the figures without them too.

    ids: of the rows that were evaluated, in the scores' order. training: the file of the training
    rows; nothing if there is none.
    """
    if not training.exists():
        return {}
    evaluated = set(ids)
    rows = [example for example in examples if example.id in evaluated]
    overlaps = audit(rows, read_records(training, Example), words)
    found = summary(overlaps, words)
    clean = [place for place, one in enumerate(overlaps) if not one.seen]
    if 2 <= len(clean) < len(ids):
        found["without"] = {
            name: resampling.figures([scores[place] for place in clean])
            for name, scores in scored.items()
        }
    return found


def environment(threads: int) -> dict[str, Any]:
    """The machine and the engines that figures were measured with."""
    return {
        **describe(),
        "threads": threads,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def by_position(scores: Sequence[ExampleScores]) -> list[dict[str, Any]]:
    """KL and agreement at the answer's first token, its second, and so on, in bins.

    `first` and `last` count the answer's tokens from 1; the last bin has no end (None).
    """
    rows = []
    ends = [start - 1 for start in POSITIONS[1:]]
    for place, (first, last) in enumerate(zip(POSITIONS, [*ends, None], strict=True)):
        sums = [0.0, 0.0, 0.0]
        for one in scores:
            if isinstance(one.fidelity, FidelityScores):
                sums = [a + b for a, b in zip(sums, one.fidelity.positions[place], strict=True)]
        if sums[0]:
            kl, agree = sums[1] / sums[0], sums[2] / sums[0]
            rows.append(
                {"first": first, "last": last, "tokens": int(sums[0]), "kl": kl, "agreement": agree}
            )
    return rows


def compared(
    scored: Scores, resampling: Resampling, pairs: Sequence[tuple[str, str]] = PAIRS
) -> dict[str, Any]:
    """`differences` and `power` of the pairs that are there."""
    made = resampling
    return {
        "differences": differences(scored, made.seed, made.resamples, made.level, pairs),
        "power": {
            f"{a}_minus_{b}": paired_power(scored[a], scored[b], made.level)
            for a, b in pairs
            if a in scored and b in scored
        },
    }


def prediction(example: Held, name: str, scored: ScoredAnswer) -> dict[str, Any]:
    """One line of predictions.jsonl: what a model said to a row, and each score of it."""
    answer = scored.scores.answer
    return {
        "id": example.id,
        "model": name,
        "kind": example.gold.kind,
        "question": example.gold.question,
        "answer": scored.answer,
        "golds": list(example.gold.answers),
        **{score: getattr(answer, score) for score in KEPT_SCORES},
        **nearness_of(scored.scores.fidelity),
        "finished": scored.finished,
    }


def nearness_of(
    fidelity: FidelityScores | SpanScores | MarkScores | None,
) -> dict[str, float]:
    """Of one example's prediction, how near it is to the teacher's."""
    if fidelity is None:
        return {}
    if isinstance(fidelity, MarkScores):
        return {"marked_kl": fidelity.kl} if fidelity.rows else {}
    if isinstance(fidelity, SpanScores):
        return {
            "span_kl": fidelity.divergence / max(1, fidelity.spans),
            "span_kl_answer": fidelity.divergence_answer / max(1, fidelity.spans_answer),
            "spans": fidelity.spans,
            "spans_answer": fidelity.spans_answer,
        }
    return {
        "kl": fidelity.kl / fidelity.tokens,
        "kl_answer": fidelity.kl_answer / fidelity.answer_tokens,
        "tokens": fidelity.tokens,
        "answer_tokens": fidelity.answer_tokens,
    }
