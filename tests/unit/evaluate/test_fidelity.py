"""Each fidelity figure against a plain float64 reference that keeps all logits, and scipy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import scipy.stats
import torch

from potstill.errors import ModelError
from potstill.evaluate.answer_scores import AnswerScores
from potstill.evaluate.fidelity import example_scores, row_scores
from potstill.evaluate.forward import check_model, head_of
from potstill.evaluate.metrics import ExampleScores, figures
from potstill.evaluate.results import by_position
from potstill.models.output import OutputLayer
from potstill.models.prefix_reader import Plan, PrefixReader

NO_ANSWER = AnswerScores(None, None)
IDS = [[256, 10, 20, 30, 40, 50, 60, 7], [256, 10, 20, 30, 99, 98], [256, 10, 20, 30, 40, 50, 1]]


def reference_rows(teacher: Any, student: Any, ids: Sequence[int]) -> torch.Tensor:
    """The definition, written out: every logit of the whole sequence at once, in float64."""
    with torch.no_grad():
        p = torch.softmax(teacher.double()(torch.tensor([ids])).logits[0, :-1], -1)
        q = torch.softmax(student.double()(torch.tensor([ids])).logits[0, :-1], -1)
    teacher.float()
    student.float()
    kl = (p * (p.log() - q.log())).sum(-1)
    agree = (p.argmax(-1) == q.argmax(-1)).double()
    nll = -torch.stack([q[row, token].log() for row, token in enumerate(ids[1:])])
    reverse = (q * (q.log() - p.log())).sum(-1)
    top5, rank = [], []
    for one, other in zip(p, q, strict=True):
        five = [set(side.argsort(descending=True)[:5].tolist()) for side in (one, other)]
        top5.append(len(five[0] & five[1]) / 5)
        ten = one.argsort(descending=True)[:10]
        rank.append(float(scipy.stats.spearmanr(one[ten], other[ten]).statistic))
    correct = (q.argmax(-1) == torch.tensor(ids[1:])).double()
    rest = [torch.tensor(values).double() for values in (top5, rank)]
    return torch.stack([kl, agree, nll, reverse, *rest, q.max(-1).values, correct])


def reference_ece(confidence: Sequence[float], correct: Sequence[float]) -> float:
    """Guo et al.'s definition, bin by bin: weight times |accuracy - mean confidence|."""
    total = 0.0
    for number in range(15):
        inside = [
            place for place, one in enumerate(confidence) if number / 15 < one <= (number + 1) / 15
        ]
        if inside:
            accuracy = sum(correct[place] for place in inside) / len(inside)
            mean = sum(confidence[place] for place in inside) / len(inside)
            total += len(inside) / len(confidence) * abs(accuracy - mean)
    return total


def test_a_hand_computed_row() -> None:
    # one row, two words: teacher (3/4, 1/4), student (1/2, 1/2), the next token is word 1
    teacher = OutputLayer(torch.tensor([[math.log(3.0)], [0.0]]))
    student = OutputLayer(torch.zeros(2, 1))
    rows = row_scores(torch.ones(1, 1), torch.ones(1, 1), torch.tensor([1]), teacher, student)
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    reverse = 0.5 * math.log(2 / 3) + 0.5 * math.log(2)
    expected = [kl, 1.0, math.log(2), reverse, 1.0, 1.0, 0.5, 0.0]
    assert rows[:, 0].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("rows_at_once", [1, 3, 256])
@torch.inference_mode()
def test_rows_equal_the_float64_reference(
    make_model: Callable[..., Any], rows_at_once: int
) -> None:
    teacher, student = make_model(1, layers=3), make_model(2)
    for ids in IDS:
        rows = row_scores(
            PrefixReader(teacher).read(ids, 0)[:-1],
            PrefixReader(student).read(ids, 0)[:-1],
            torch.tensor(ids[1:]),
            head_of(teacher, 258),
            head_of(student, 258),
            rows_at_once,
        )
        expected = reference_rows(teacher, student, ids)
        assert rows.shape == (8, len(ids) - 1)
        torch.testing.assert_close(rows, expected, rtol=1e-4, atol=1e-4)


def test_a_model_against_itself_is_exactly_zero(make_model: Callable[..., Any]) -> None:
    model = make_model(1)
    with torch.inference_mode():
        hidden = PrefixReader(model).read(IDS[0], 0)[:-1]
        head = head_of(model, 258)
        rows = row_scores(hidden, hidden, torch.tensor(IDS[0][1:]), head, head)
    assert rows[0].abs().max() == 0
    assert rows[3].abs().max() == 0
    for exact in (1, 4, 5):  # agreement, the first five, the ranks of the first ten
        assert rows[exact].min() == 1


def test_the_calibration_error_of_all_examples_is_that_of_all_their_rows() -> None:
    random = torch.Generator().manual_seed(3)
    examples = [torch.rand(8, n, generator=random, dtype=torch.float64) for n in (5, 30, 80)]
    for rows in examples:
        rows[7] = (rows[7] > 0.4).double()
    examples[0][6, :3] = torch.tensor([1 / 15, 1.0, 8 / 15])  # on the bins' borders
    scores = [ExampleScores(example_scores(rows, 2, (9, 4)), NO_ANSWER) for rows in examples]
    every = torch.cat(examples, dim=1)
    found = figures(scores, seed=1, resamples=100, level=0.9)
    assert found["ece"].value == pytest.approx(reference_ece(every[6].tolist(), every[7].tolist()))
    of_answers = torch.cat([rows[:, 1:] for rows in examples], dim=1)
    assert found["ece_answer"].value == pytest.approx(
        reference_ece(of_answers[6].tolist(), of_answers[7].tolist())
    )
    bits = float(of_answers[2].sum()) / math.log(2) / 12
    assert found["bits_per_byte_answer"].value == pytest.approx(bits)


def test_bins_of_position_hold_every_answer_row_once() -> None:
    rows = torch.zeros(8, 42, dtype=torch.float64)
    rows[0] = torch.arange(42)
    scores = example_scores(rows, 3, (0, 0))  # the answer's rows are 2 to 41
    assert [one[0] for one in scores.positions] == [1, 1, 2, 4, 8, 16, 8]
    assert scores.positions[0][1] == 2
    assert sum(one[1] for one in scores.positions) == scores.kl_answer
    shown = by_position([ExampleScores(scores, NO_ANSWER)] * 2)
    assert [(one["first"], one["last"]) for one in shown][1:3] == [(2, 2), (3, 4)]
    assert shown[-1]["last"] is None
    assert (shown[2]["kl"], shown[2]["tokens"]) == ((4 + 5) / 2, 4)


def test_answer_rows_begin_one_before_the_answer() -> None:
    rows = torch.tensor([[1.0, 2.0, 4.0], [1.0, 0.0, 1.0], [8.0, 16.0, 32.0]]).double()
    rows = torch.cat([rows, torch.ones(5, 3, dtype=torch.float64)])
    scores = example_scores(rows, 2, (11, 5))  # 4 tokens; the answer is tokens 2 and 3
    assert (scores.tokens, scores.answer_tokens) == (3, 2)
    assert (scores.kl, scores.kl_answer) == (7.0, 6.0)
    assert (scores.agree, scores.agree_answer) == (2.0, 1.0)
    assert (scores.nll, scores.nll_answer) == (56.0, 48.0)
    assert (scores.top5, scores.top5_answer) == (3.0, 2.0)
    assert (scores.bytes, scores.bytes_answer) == (11, 5)


def test_the_plan_shares_what_neighbours_have_in_common() -> None:
    plan = Plan.of(IDS)
    assert plan.order == (2, 0, 1)
    # 2 and 0 share 6 tokens, so rows 0..4 are equal; 0 and 1 share 4 tokens, rows 0..2
    assert plan.shared == (0, 5, 3)


def test_duplicates_share_every_row() -> None:
    assert Plan.of([[5, 6, 7], [5, 6, 7]]).shared == (0, 2)


def test_reading_with_shared_beginnings_changes_nothing(make_model: Callable[..., Any]) -> None:
    model = make_model(3)
    reader = PrefixReader(model)
    with torch.inference_mode():
        for index, shared in Plan.of([*IDS, IDS[0]]):
            ids = [*IDS, IDS[0]][index]
            ours = reader.read(ids, shared)
            whole = model.base_model(torch.tensor([ids])).last_hidden_state[0]
            torch.testing.assert_close(ours, whole, rtol=1e-4, atol=1e-5)
            assert reader.prefix(4)[0][0].shape[2] == 4


def test_padded_vocabulary_rows_do_not_count(make_model: Callable[..., Any]) -> None:
    narrow, wide = make_model(1), make_model(1, vocabulary=320)
    with torch.no_grad():
        wide.load_state_dict(
            {
                name: torch.cat([value, torch.full((62, 32), 9.0)]) if len(value) == 258 else value
                for name, value in narrow.state_dict().items()
            }
        )
    with torch.inference_mode():
        hidden = PrefixReader(narrow).read(IDS[0], 0)[:-1]
        rows = row_scores(
            hidden, hidden, torch.tensor(IDS[0][1:]), head_of(narrow, 258), head_of(wide, 258)
        )
    assert rows[0].abs().max() == 0


def test_a_model_with_too_few_output_rows_is_refused(make_model: Callable[..., Any]) -> None:
    with pytest.raises(ModelError, match="258 rows for a vocabulary of 300"):
        head_of(make_model(1), 300)


def test_a_model_that_changes_its_logits_afterwards_is_refused(
    make_model: Callable[..., Any],
) -> None:
    model = make_model(1)
    plain = model.forward

    def capped(**arguments: Any) -> Any:
        output = plain(**arguments)
        output.logits = 2.0 * torch.tanh(output.logits / 2.0)
        return output

    with torch.inference_mode():
        check_model(model, head_of(model, 258), IDS[0], "student")
        model.forward = capped
        with pytest.raises(ModelError, match="student model cannot be measured"):
            check_model(model, head_of(model, 258), IDS[0], "student")


def test_a_model_that_caps_its_logits_is_measured_as_it_is(
    random_model: Callable[..., Any],
) -> None:
    random = {"seed": 1, "spread": 0.4, "norms": 0.4}
    model = random_model("gemma2", vocab_size=258, final_logit_softcapping=2.0, **random)
    with torch.inference_mode():
        head = head_of(model, 258)
        check_model(model, head, IDS[0], "student")
        hidden = PrefixReader(model).read(IDS[0], 0)[:-1]
        expected = model(torch.tensor([IDS[0]])).logits[0, :-1]
        torch.testing.assert_close(head.logits(hidden), expected)
        assert expected.abs().max() <= 2.0


def test_a_diverged_model_is_refused_by_name(make_model: Callable[..., Any]) -> None:
    model = make_model(1)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.fill_(math.nan)
    with torch.inference_mode(), pytest.raises(ModelError, match="distilled model computes logits"):
        check_model(model, head_of(model, 258), IDS[0], "distilled")
