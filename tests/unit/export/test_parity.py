"""The scores behind the gate, against numbers worked out by hand and by scipy."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.special import rel_entr

from potstill.errors import ModelError
from potstill.export.chain import Allowance, f1_difference, flat, judged, student_hop
from potstill.export.parity import (
    Reader,
    Row,
    check_prompts,
    check_stop,
    figures,
    row_sums,
    score_files,
    token_columns,
)
from potstill.export.run import PLAIN_TEMPLATE
from potstill.models.load import load_model
from potstill.models.native import Answer, Answers
from potstill.records import Turn

ROW = Row("r", [5, 6, 7, 8], 2, (Turn(role="user", content="q"),), ("yes",), "yes")


def log_probabilities(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.log_softmax(torch.randn(3, 11, generator=generator), dim=-1)


def test_row_sums_equal_scipys_relative_entropy_and_the_answers_rows_begin_one_early() -> None:
    teacher, student, file = (log_probabilities(seed) for seed in (1, 2, 3))
    targets = torch.tensor([4, 9, 0])
    sums = row_sums(token_columns(teacher, student, file, targets), answer_start=2)

    def kl(reference: torch.Tensor, first: int) -> float:
        p, q = reference[first:].double().exp(), file[first:].double().exp()
        return float(rel_entr(p.numpy(), q.numpy()).sum())

    assert sums["kl"] == pytest.approx(kl(teacher, 0), rel=1e-5)
    assert sums["kl_student"] == pytest.approx(kl(student, 0), rel=1e-5)
    assert sums["kl_answer"] == pytest.approx(kl(teacher, 1), rel=1e-5)
    assert sums["nll"] == pytest.approx(-float(file[0, 4] + file[1, 9] + file[2, 0]), rel=1e-5)
    assert sums["nll_answer"] == pytest.approx(-float(file[1, 9] + file[2, 0]), rel=1e-5)
    assert (sums["tokens"], sums["answer_tokens"]) == (3, 2)
    same = teacher.argmax(-1) == file.argmax(-1)
    assert sums["agree"] == float(same.sum())


def test_a_model_against_itself_has_no_kl_and_agrees_everywhere() -> None:
    own = log_probabilities(1)
    sums = row_sums(token_columns(own, own, own, torch.tensor([1, 2, 3])), 1)
    assert sums["kl"] == sums["kl_student"] == 0
    assert sums["agree"] == sums["agree_student"] == 3


def test_figures_are_means_over_tokens_of_all_rows() -> None:
    names = [f"{n}{e}" for n in ("kl", "agree", "nll", "kl_student", "agree_student")
             for e in ("", "_answer")]  # fmt: skip
    one = {**dict.fromkeys(names, 1.0), "tokens": 2.0, "answer_tokens": 1.0}
    two = {**dict.fromkeys(names, 5.0), "tokens": 4.0, "answer_tokens": 1.0}
    answers = [Answer("Yes.", ROW.prompt, "stop"), Answer("no", ROW.prompt, "stop")]
    found = figures([one, two], [ROW, ROW], answers, seed=1, resamples=100, level=0.9)
    assert found["kl"]["value"] == pytest.approx(1.0)
    assert found["kl_answer"]["value"] == pytest.approx(3.0)
    assert found["perplexity"]["value"] == pytest.approx(math.e)
    assert found["em"]["value"] == found["f1"]["value"] == 0.5
    assert found["greedy_agreement"]["value"] == 0.0  # "Yes." is not "yes" letter for letter


HOP = {"from": "distilled", "to": "gguf-f16", "compared_with": "distilled", "file": "f"}


def whole(value: float) -> dict[str, float]:
    return {"value": value, "low": value, "high": value, "n": 4}


@pytest.mark.parametrize(
    ("kl", "agree", "passes"),
    [(0.0009, 0.99, True), (0.002, 1.0, False), (0.0, 0.98, False), (math.nan, 1.0, False)],
)
def test_the_gate_shuts_on_kl_on_disagreement_and_on_nan(
    kl: float, agree: float, passes: bool
) -> None:
    hop = {**HOP, "kl": whole(kl), "agreement": whole(agree)}
    allowance = Allowance(max_kl=1e-3, min_agreement=0.99)
    if passes:
        assert judged(hop, allowance)["holds"]
        assert flat(judged(hop, allowance))["kl"] == f"{kl:.2g} ({kl:.2g} to {kl:.2g})"
    else:
        with pytest.raises(ModelError, match=r"distilled -> gguf-f16 lost more than it may"):
            judged(hop, allowance)


def test_lost_answers_shut_the_gate_only_where_the_whole_interval_is_beyond() -> None:
    golds = [("red",)] * 8
    difference = f1_difference(["red"] * 8, ["blue"] * 8, golds, 1, 100, 0.9)
    assert difference == {"value": -1.0, "low": -1.0, "high": -1.0, "n": 8}
    with pytest.raises(ModelError, match=r"F1 is lower by 1\.00 to 1\.00 \(allowed 0\.1\)"):
        judged({**HOP, "f1_difference": difference}, Allowance(max_f1_loss=0.1))
    unsure = f1_difference(["red"] * 8, ["red"] * 7 + ["blue"], golds, 1, 100, 0.9)
    assert unsure is not None
    assert unsure["value"] < -0.1 < unsure["high"]
    assert judged({**HOP, "f1_difference": unsure}, Allowance(max_f1_loss=0.1))["holds"]
    few = f1_difference(["red"] * 2, ["blue"] * 2, golds[:2], 1, 100, 0.9)
    assert judged({**HOP, "f1_difference": few}, Allowance(max_f1_loss=0.1))["holds"]
    assert f1_difference([None, "red"], ["red"] * 2, golds[:2], 1, 100, 0.9) is None


def test_the_first_hop_is_evaluates_and_has_a_bound_if_one_is_set() -> None:
    difference = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9, "significant": True}
    results = {
        "models": {"distilled": {"metrics": {"kl": whole(0.3), "agreement": whole(0.8)}}},
        "differences": {"teacher_minus_distilled": {"f1": difference}},
    }
    hop = student_hop(results, Allowance())
    assert hop["f1_difference"] == {"value": -0.5, "low": -0.6, "high": -0.4, "n": 9}
    assert flat(hop)["hop"] == "teacher to distilled"
    with pytest.raises(ModelError, match="teacher -> distilled lost more"):
        student_hop(results, Allowance(max_kl=0.2))
    with pytest.raises(ModelError, match="F1 is lower"):
        student_hop(results, Allowance(max_f1_loss=0.3))


def test_another_prompt_in_llamacpp_is_refused_and_says_where() -> None:
    check_prompts("f", [ROW], [Answer("", [5, 6], "stop")])
    with pytest.raises(ModelError, match="they part at position 1"):
        check_prompts("f", [ROW], [Answer("", [5, 9], "stop")])
    with pytest.raises(ModelError, match="1 prompt tokens there and 2"):
        check_prompts("f", [ROW], [Answer("", [5], "stop")])


def test_a_file_that_does_not_stop_is_refused() -> None:
    with pytest.raises(ModelError, match="does not stop"):
        check_stop("f", Answers([], False, 0.1, 1.0, 1))


def test_the_plain_template_renders_what_training_used_for_a_model_without_one() -> None:
    import jinja2

    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "Three?"},
    ]
    rendered = jinja2.Template(PLAIN_TEMPLATE).render(messages=turns, add_generation_prompt=True)
    assert (
        rendered
        == "System: Be brief.\n\nUser: One?\n\nAssistant: Two.\n\nUser: Three?\n\nAssistant:"
    )


def test_what_rows_share_is_read_once_and_scored_the_same(
    tiny_folder: Path, tiny_ggufs: dict[str, Path]
) -> None:
    model = load_model(tiny_folder)
    passage = list(range(30, 60))
    rows = [
        replace(ROW, id=str(place), ids=[*passage, *question], answer_start=31)
        for place, question in enumerate([[70, 71, 72], [5, 6], [70, 71, 99, 7], [70, 71, 72]])
    ] + [replace(ROW, ids=[8, 9, 10], answer_start=1)]
    fed: list[int] = []

    def counting(input_ids: torch.Tensor, **settings: Any) -> Any:
        fed.append(input_ids.shape[1])
        return model(input_ids=input_ids, **settings)

    file = {"f16": tiny_ggufs["f16"]}
    together = score_files(file, counting, counting, rows, 300, 1)["f16"]
    assert sum(fed) < 2 * 2 * len(passage)  # two models, and the passage only once for each
    for row, sums in zip(rows, together, strict=True):
        alone = score_files(file, model, model, [row], 300, 1)["f16"][0]
        assert sums == pytest.approx(alone, rel=1e-3, abs=1e-4)
        assert sums["kl"] == pytest.approx(0, abs=1e-4)
        assert sums["tokens"] == sums["agree"] == len(row.ids) - 1


def test_a_model_whose_state_cannot_be_cut_is_read_from_the_start(tiny_folder: Path) -> None:
    model = load_model(tiny_folder)
    reader = Reader(model, 300)
    first = reader.log_probabilities([40, 41, 42, 43], 1)
    reader._can_be_cut = lambda: False  # type: ignore[method-assign]
    again = reader.log_probabilities([40, 41, 42, 43], 3)
    torch.testing.assert_close(again, first[2:])
