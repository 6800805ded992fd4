"""Compares every answer metric with its official implementation, on random strings.

    python benchmarks/evaluate_metrics.py [--strings 10000]

The official sides: the rules of SQuAD's evaluate-v1.1.py and evaluate-v2.0.py, written out here;
NLTK's sentence BLEU with smoothing 4; sacreBLEU's corpus BLEU and chrF; rouge-score. Prints one
JSON object a line: the largest difference found. Loads no model.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import string
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from potstill.core.machine import describe
from potstill.core.scoring import exact_match, token_f1
from potstill.evaluate.answer_scores import squad_v2
from potstill.evaluate.overlap import bleu_counts, chrf, corpus_bleu, rouge, sentence_bleu

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from nltk.translate.bleu_score import SmoothingFunction
    from nltk.translate.bleu_score import sentence_bleu as nltk_bleu

GOAL = 1e-9
CORPUS = 50
"""Rows of one corpus BLEU."""
WORDS = (
    "the a an copper still opens at 42 turns of valve b-2 Ünder naïve e.g. don't U.S.A. 3.5 bar, "
    "(teal) “quoted” 東京 x y z the The THE ! ?! … 1,250 km² and or not"
).split()
SIGNS = string.printable + "äßéñ中文 \u00a0\u2028“”…"
ROUGE = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)
SMOOTHING = SmoothingFunction().method4
Pair = tuple[str, list[str]]


def pairs(count: int, seed: int = 0) -> list[Pair]:
    """A prediction and one to three references each: words, noise, near copies, empty texts."""
    chance = random.Random(seed)

    def text() -> str:
        if chance.random() < 0.2:
            return "".join(chance.choices(SIGNS, k=chance.randrange(30)))
        return " ".join(chance.choices(WORDS, k=chance.randrange(16)))

    made = []
    for _ in range(count):
        golds = [one for one in (text() for _ in range(chance.choice((1, 1, 2, 3)))) if one.strip()]
        golds = golds or ["42 turns"]
        said = text()
        if chance.random() < 0.4:
            words = golds[0].split()
            said = " ".join(word for word in words if chance.random() < 0.8)
        made.append((said, golds))
    return made


def squad_tokens(text: str) -> list[str]:
    """normalize_answer of SQuAD's scripts, split."""
    bare = "".join(sign for sign in text.lower() if sign not in set(string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def squad_f1(said: str, gold: str, v2: bool) -> float:
    """compute_f1 of either script."""
    ours, theirs = squad_tokens(said), squad_tokens(gold)
    if v2 and (not ours or not theirs):
        return float(ours == theirs)
    same = sum((Counter(ours) & Counter(theirs)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(ours), same / len(theirs)
    return 2 * precision * recall / (precision + recall)


def squad(said: str, golds: Sequence[str], v2: bool) -> tuple[float, float]:
    """(F1, EM) over several gold answers."""
    if v2:
        golds = [gold for gold in golds if squad_tokens(gold)] or [""]
    f1 = max(squad_f1(said, gold, v2) for gold in golds)
    return f1, max(float(squad_tokens(said) == squad_tokens(gold)) for gold in golds)


def official_rouge(said: str, golds: Sequence[str]) -> list[float]:
    """The best F1 over the gold answers."""
    scores = [ROUGE.score(gold, said) for gold in golds]
    return [max(one[name].fmeasure for one in scores) for name in scores[0]]


def worst(rows: Sequence[Pair], ours: Callable[..., Any], theirs: Callable[..., Any]) -> float:
    """The largest difference of any figure on any row."""
    return max(
        float(np.max(np.abs(np.subtract(ours(said, golds), theirs(said, golds)))))
        for said, golds in rows
    )


def corpora(rows: Sequence[Pair]) -> float:
    """The largest difference of a corpus BLEU, one reference a row."""
    differences = []
    for start in range(0, len(rows), CORPUS):
        some = [(said, golds[0]) for said, golds in rows[start : start + CORPUS]]
        counted = [(said, gold, bleu_counts(said, [gold])) for said, gold in some]
        kept = [one for one in counted if one[2]]
        official = sacrebleu.corpus_bleu([one[0] for one in kept], [[one[1] for one in kept]])
        found = corpus_bleu(np.sum([one[2] for one in kept], axis=0, dtype=float))
        differences.append(abs(float(found) - official.score / 100))
    return max(differences)


def main() -> int:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--strings", type=int, default=10_000)
    options = parser.parse_args()
    rows = pairs(options.strings)
    checks: dict[str, Callable[[], float]] = {
        "EM and F1, SQuAD v1.1": lambda: worst(
            rows, lambda s, g: (token_f1(s, g), exact_match(s, g)), lambda s, g: squad(s, g, False)
        ),
        "EM and F1, SQuAD v2.0": lambda: worst(rows, squad_v2, lambda s, g: squad(s, g, True)),
        "sentence BLEU, smoothing 4": lambda: worst(
            rows,
            sentence_bleu,
            lambda s, g: nltk_bleu(
                [gold.split() for gold in g], s.split(), smoothing_function=SMOOTHING
            ),
        ),
        "corpus BLEU": lambda: corpora(rows),
        "chrF": lambda: worst(rows, chrf, lambda s, g: sacrebleu.sentence_chrf(s, g).score / 100),
        "ROUGE-1, ROUGE-2, ROUGE-L": lambda: worst(
            rows, lambda s, g: list(rouge(s, g).values()), official_rouge
        ),
    }
    how = f"{options.strings} random predictions with one to three references, seed 0"
    held = []
    for name, check in checks.items():
        value = check()
        held.append(value <= GOAL)
        line = {"figure": f"{name}: largest difference from the official one", "value": value}
        line |= {"unit": "of 1", "goal": GOAL, "holds": held[-1], "how": how}
        print(json.dumps(line | {"machine": describe()}), flush=True)
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
