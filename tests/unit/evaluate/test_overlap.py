"""BLEU, chrF and ROUGE against the packages that they must equal, and hand-computed goldens."""

from __future__ import annotations

import itertools
import math
import random
import warnings

import numpy as np
import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from potstill.errors import InputError
from potstill.evaluate.overlap import bleu_counts, chrf, corpus_bleu, rouge, sentence_bleu

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from nltk.translate.bleu_score import SmoothingFunction
    from nltk.translate.bleu_score import sentence_bleu as nltk_bleu

CLOSE = {"rel": 0, "abs": 1e-9}
WORDS = st.lists(
    st.sampled_from(["the", "copper", "still", "42", "turns", "a", "b-c", "Ünder", "x.", "!"]),
    max_size=14,
).map(" ".join)
ANY = st.text(max_size=40)
ROUGE = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)
SMOOTH = SmoothingFunction().method4


def official_bleu(prediction: str, references: list[str]) -> float:
    golds = [reference.split() for reference in references]
    return float(nltk_bleu(golds, prediction.split(), smoothing_function=SMOOTH))


def official_rouge(prediction: str, references: list[str]) -> dict[str, float]:
    scores = [ROUGE.score(reference, prediction) for reference in references]
    return {name: max(one[name].fmeasure for one in scores) for name in scores[0]}


@given(WORDS | ANY, st.lists((WORDS | ANY).filter(str.strip), min_size=1, max_size=3))
def test_every_figure_is_that_of_its_package(prediction: str, references: list[str]) -> None:
    assert sentence_bleu(prediction, references) == pytest.approx(
        official_bleu(prediction, references), **CLOSE
    )
    expected = official_rouge(prediction, references)
    assert rouge(prediction, references) == pytest.approx(expected, **CLOSE)
    package = sacrebleu.sentence_chrf(prediction, references).score / 100
    assert chrf(prediction, references) == pytest.approx(package, **CLOSE)


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=8))
def test_corpus_bleu_of_summed_counts_is_that_of_sacrebleu(rows: list[tuple[str, str]]) -> None:
    counted = [(said, gold, bleu_counts(said, [gold])) for said, gold in rows]
    kept = [one for one in counted if one[2]]
    if not kept:
        return
    ours = corpus_bleu(np.sum([counts for _, _, counts in kept], axis=0, dtype=float))
    package = sacrebleu.corpus_bleu([one[0] for one in kept], [[one[1] for one in kept]])
    assert float(ours) == pytest.approx(package.score / 100, **CLOSE)


def test_hand_computed_goldens() -> None:
    said, gold = "the still opens at 42", "the still opens at 40 turns"
    # matches 4/5, 3/4, 2/3, 1/2; 5 words against 6
    product = (4 / 5) * (3 / 4) * (2 / 3) * (1 / 2)
    assert sentence_bleu(said, [gold]) == pytest.approx(math.exp(1 - 6 / 5) * product**0.25)
    # 4 shared words of 5 and 6; 3 shared pairs of 4 and 5; the longest common run is 4 words
    assert rouge(said, [gold]) == pytest.approx(
        {"rouge1": 8 / 11, "rouge2": 6 / 9, "rougeL": 8 / 11}
    )
    assert sentence_bleu("42 turns", ["42 turns"]) < 1  # smoothing 4 has no 4-gram to match
    assert chrf("42 turns", ["42 turns"]) == pytest.approx(1)


def test_short_answers_are_no_part_of_a_corpus_bleu_that_would_call_them_wrong() -> None:
    assert sacrebleu.corpus_bleu(["42 turns"] * 3, [["42 turns"] * 3]).score == 0
    assert bleu_counts("42 turns", ["42 turns"]) == ()
    assert bleu_counts("42 turns", ["42 turns", "it is 42 turns"]) != ()  # one gold is long enough
    counts = bleu_counts("it is 42 turns", ["it is 42 turns"])
    assert counts == (4, 3, 2, 1, 4, 3, 2, 1, 4, 4)
    assert corpus_bleu(np.array(counts, dtype=float)) == pytest.approx(1)


def test_a_table_of_sums_is_scored_row_by_row() -> None:
    random_ = random.Random(3)
    words = "a copper still of teal opens at 42 turns".split()
    rows = [" ".join(random_.choices(words, k=7)) for _ in range(6)]
    counts = np.array([bleu_counts(a, [b]) for a, b in itertools.pairwise(rows)], float)
    table = np.stack([counts[:3].sum(0), counts[2:].sum(0), np.zeros(10)])
    found = corpus_bleu(table)
    assert found.shape == (3,)
    assert found[2] == 0
    assert found[0] == corpus_bleu(counts[:3].sum(0))


@pytest.mark.parametrize("score", [sentence_bleu, rouge, chrf, bleu_counts])
def test_a_text_without_a_reference_is_refused(score: object) -> None:
    with pytest.raises(InputError, match="no reference"):
        score("x", [])  # type: ignore[operator]
    with pytest.raises(TypeError, match="not one text"):
        score("x", "x")  # type: ignore[operator]
