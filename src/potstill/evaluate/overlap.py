"""How much of a text's wording another text has: BLEU, chrF and ROUGE.

In: a prediction and its references, as text. Out: figures from 0 to 1 (the packages print most of
them times 100). Knows nothing of models, rows or intervals.

Each figure is that of its official package to the last digit or nearly (1e-9, tested):

    sentence_bleu   NLTK's `sentence_bleu`, 4-grams, `SmoothingFunction().method4`, words split at
                    white space (Chen & Cherry 2014, smoothing 4)
    corpus_bleu     sacreBLEU's default: 13a tokens, 4-grams, smoothing exp (Post 2018)
    chrf            sacreBLEU's chrF2: 6-grams of characters, beta 2 (Popović 2015)
    rouge           `rouge-score` without a stemmer: words of a-z and 0-9 (Lin 2004)

With several references, BLEU and chrF use them together as their packages do, ROUGE takes the one
of the best F1.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potstill.core.extras import require
from potstill.errors import InputError

ORDER = 4
SHORT = ORDER
"""Texts of fewer tokens have no 4-gram: a corpus of them has BLEU 0 even if each is perfect."""
SMOOTHING_4 = 5.0
"""The K of smoothing 4."""
_ROUGE_SPLIT = re.compile(r"[^a-z0-9]+")

Floats = NDArray[np.float64]


def sentence_bleu(prediction: str, references: Sequence[str]) -> float:
    """BLEU of one text, smoothed so that an order without a match is not all (0 to 1)."""
    _need(references)
    said = prediction.split()
    golds = [reference.split() for reference in references]
    matched, total = _clipped(said, golds)
    if matched[0] == 0:
        return 0.0
    precisions, halved = [], 1
    for same, of in zip(matched, total, strict=True):
        if same == 0 and len(said) > 1:
            # a shorter text gets a smaller count for what it could not match
            halved *= 2
            precisions.append(math.log(len(said)) / (halved * SMOOTHING_4) / of)
        else:
            precisions.append(same / of)
    if min(precisions) == 0:  # one word: its longer orders cannot be smoothed, and do not count
        precisions = [one for one in precisions if one > 0]
    weighed = math.fsum(math.log(one) / ORDER for one in precisions)
    return _brevity(len(said), _closest(len(said), golds)) * math.exp(weighed)


def rouge(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """F1 of `rouge1`, `rouge2` (shared words and pairs) and `rougeL` (longest common sequence)."""
    _need(references)
    said = _rouge_words(prediction)
    found = {"rouge1": 0.0, "rouge2": 0.0, "rougeL": 0.0}
    for reference in references:
        gold = _rouge_words(reference)
        for order in (1, 2):
            grams, others = _grams(said, order), _grams(gold, order)
            shared = sum((grams & others).values())
            score = _f1(shared, sum(grams.values()), sum(others.values()))
            found[f"rouge{order}"] = max(found[f"rouge{order}"], score)
        common = _common_sequence(said, gold)
        found["rougeL"] = max(found["rougeL"], _f1(common, len(said), len(gold)))
    return found


def chrf(prediction: str, references: Sequence[str]) -> float:
    """chrF2 of one text (0 to 1). Errors: MissingExtraError without sacreBLEU."""
    _need(references)
    return float(_sacrebleu("chrf").sentence_score(prediction, list(references)).score) / 100


def bleu_counts(prediction: str, references: Sequence[str]) -> tuple[int, ...]:
    """What corpus BLEU needs to know of one text; its counts are added over the corpus.

    (matches of the orders 1 to 4, n-grams of the orders 1 to 4, tokens, tokens of the closest
    reference). Empty: no reference has a 4-gram, so the text is no part of a corpus BLEU.
    """
    _need(references)
    bleu = _sacrebleu("bleu")
    if all(len(bleu.tokenizer(reference).split()) < SHORT for reference in references):
        return ()
    score = bleu.sentence_score(prediction, list(references))
    return (*score.counts, *score.totals, score.sys_len, score.ref_len)


def corpus_bleu(sums: Floats) -> Floats:
    """sacreBLEU's corpus figure (0 to 1) of summed `bleu_counts`. sums: [..., 10] -> [...]."""
    sums = np.asarray(sums, dtype=np.float64)
    matched, total = sums[..., :ORDER], sums[..., ORDER : 2 * ORDER]
    said, closest = sums[..., -2], sums[..., -1]
    halved = np.ones(sums.shape[:-1])
    logs = np.zeros(sums.shape[:-1])
    with np.errstate(divide="ignore", invalid="ignore"):
        for order in range(ORDER):
            none = matched[..., order] == 0
            halved = np.where(none, halved * 2, halved)
            logs += np.log(np.where(none, 1 / halved, matched[..., order]) / total[..., order])
        brevity = np.where(said < closest, np.exp(1 - closest / np.maximum(said, 1)), 1.0)
        found = brevity * np.exp(logs / ORDER)
    nothing = (matched.sum(-1) == 0) | (total == 0).any(-1)
    return np.where(nothing, 0.0, found)


@lru_cache(maxsize=2)
def _sacrebleu(metric: str) -> Any:
    """The package's metric with the settings of a corpus score."""
    metrics = require("sacrebleu", "report", "A BLEU or chrF score").metrics
    return metrics.CHRF() if metric == "chrf" else metrics.BLEU(effective_order=True)


def _need(references: Sequence[str]) -> None:
    if isinstance(references, str):
        raise TypeError("references is a sequence of texts, not one text")
    if not references:
        raise InputError("There is no reference to score a text against.")


def _grams(words: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[start:] for start in range(order)), strict=False))


def _clipped(said: list[str], golds: Sequence[list[str]]) -> tuple[list[int], list[int]]:
    """Matches of each order, none counted more often than one reference has it; and all n-grams."""
    matched, total = [], []
    for order in range(1, ORDER + 1):
        grams = _grams(said, order)
        most: Counter[tuple[str, ...]] = Counter()
        for gold in golds:
            most |= _grams(gold, order)
        matched.append(sum((grams & most).values()))
        total.append(max(1, sum(grams.values())))
    return matched, total


def _closest(length: int, golds: Sequence[list[str]]) -> int:
    """Length of the reference that is nearest in length; the shorter of two."""
    return min((len(gold) for gold in golds), key=lambda other: (abs(other - length), other))


def _brevity(said: int, closest: int) -> float:
    if said > closest:
        return 1.0
    return math.exp(1 - closest / said) if said else 0.0


def _rouge_words(text: str) -> list[str]:
    return _ROUGE_SPLIT.sub(" ", text.lower()).split()


def _f1(shared: int, said: int, gold: int) -> float:
    precision, recall = shared / max(said, 1), shared / max(gold, 1)
    return 2 * precision * recall / (precision + recall) if shared else 0.0


def _common_sequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, one row of the table at a time."""
    row = [0] * (len(b) + 1)
    for word in a:
        diagonal = 0
        for place, other in enumerate(b, 1):
            above = row[place]
            row[place] = diagonal + 1 if word == other else max(above, row[place - 1])
            diagonal = above
    return row[-1]
