"""Attention maps of teacher and student: against transformers' own, and definitions in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.distill.maps import attention_kl
from potstill.errors import TrainingError

L = 7
Side = tuple[Tensor, Tensor, float]


def _side(seed: int, heads: int, key_heads: int, width: int, queries: int = L) -> Side:
    make = torch.Generator().manual_seed(seed)
    q = 1.5 * torch.randn(heads, queries, width, generator=make)
    k = 1.5 * torch.randn(key_heads, L, width, generator=make)
    return q, k, width**-0.5


def _kl(student: Side, teacher: Side, weights: Tensor, **options: Any) -> Tensor:
    return attention_kl(
        student[0],
        student[1],
        teacher[0],
        teacher[1],
        student_scale=student[2],
        teacher_scale=teacher[2],
        weights=weights,
        **options,
    )


def _causal(queries: int = L) -> Tensor:
    return torch.arange(L) <= torch.arange(queries).unsqueeze(-1) + L - queries


def _reference(student: Side, teacher: Side, weights: Tensor, mask: Tensor) -> Tensor:
    """The definition, one head and one query after the other, in float64."""
    maps = []
    for q, k, scale in (student, teacher):
        shared = q.shape[0] // k.shape[0]
        heads = []
        for head, queries in enumerate(q.double()):
            scores = scale * queries @ k.double()[head // shared].T
            heads.append([scores[row][mask[row]].softmax(-1) for row in range(queries.shape[0])])
        maps.append(heads)
    if len(maps[0]) != len(maps[1]):
        maps = [[[sum(rows) / len(rows) for rows in zip(*heads, strict=True)]] for heads in maps]
    total = torch.zeros((), dtype=torch.float64)
    for one, other in zip(*maps, strict=True):
        for row in range(len(one)):
            kl = (other[row] * (other[row].log() - one[row].log())).sum()
            total = total + weights[row].double() * kl / len(maps[0])
    return total


SHAPES = {
    "same heads": ((4, 4, 8), (4, 4, 8)),
    "grouped queries": ((4, 2, 8), (4, 1, 6)),
    "other heads": ((2, 1, 8), (6, 3, 4)),
    "one head to many": ((1, 1, 8), (4, 2, 8)),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("queries", [L, 3])
@pytest.mark.parametrize("chunk", [1, 3, None])
def test_value_and_gradient_equal_the_definition_in_float64(
    name: str, queries: int, chunk: int | None
) -> None:
    student, teacher = (_side(n, *shape, queries) for n, shape in enumerate(SHAPES[name]))
    weights = torch.rand(queries, generator=torch.Generator().manual_seed(5))
    found, expected = [], []
    for double, results in ((False, found), (True, expected)):
        q, k = (one.clone().double() if double else one.clone() for one in student[:2])
        q, k = q.requires_grad_(), k.requires_grad_()
        side = (q, k, student[2])
        value = (
            _reference(side, teacher, weights, _causal(queries))
            if double
            else _kl(side, teacher, weights, chunk=chunk)
        )
        (3 * value).backward()
        results += [value.detach(), q.grad, k.grad]
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        scale = float(other.abs().max())
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5 * scale)


def test_a_golden_value_by_hand() -> None:
    # Scores of the second query: teacher (0, log 3), so (1/4, 3/4); student (0, 0), so halves.
    teacher = (torch.tensor([[[9.0], [2.0]]]), torch.tensor([[[0.0], [math.log(3)]]]), 0.5)
    student = (torch.tensor([[[9.0], [0.0]]]), torch.tensor([[[0.0], [1.0]]]), 0.5)
    expected = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    value = _kl(student, teacher, torch.tensor([5.0, 2.0]))
    assert float(value) == pytest.approx(2 * expected)


def test_heads_are_averaged_before_they_are_compared_where_their_numbers_differ() -> None:
    # The teacher's two heads look at one key each; on average at both, as the student does.
    teacher = (
        torch.tensor([[[0.0], [40.0]], [[0.0], [-40.0]]]),
        torch.tensor([[[0.0], [1.0]]]),
        1.0,
    )
    student = (torch.zeros(1, 2, 1), torch.zeros(1, 2, 1), 1.0)
    assert float(_kl(student, teacher, torch.ones(2))) == pytest.approx(0.0, abs=1e-6)
    both = (torch.zeros(2, 2, 1), torch.zeros(1, 2, 1), 1.0)
    assert float(_kl(both, teacher, torch.ones(2))) == pytest.approx(math.log(2))


@pytest.mark.parametrize("name", SHAPES)
def test_gradients_agree_with_finite_differences(name: str) -> None:
    student, teacher = (_side(n, *shape) for n, shape in enumerate(SHAPES[name]))
    q, k = (one.double().requires_grad_() for one in student[:2])
    weights = torch.rand(L, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda q, k: _kl((q, k, student[2]), teacher, weights, chunk=3), (q, k)
    )


@pytest.mark.parametrize("name", SHAPES)
def test_any_mask_counts_only_what_is_seen(name: str) -> None:
    student, teacher = (_side(n, *shape) for n, shape in enumerate(SHAPES[name]))
    mask = _causal() & (torch.rand(L, L, generator=torch.Generator().manual_seed(2)) < 0.7)
    mask.fill_diagonal_(True)
    weights = torch.rand(L)
    expected = _reference(student, teacher, weights, mask)
    assert float(_kl(student, teacher, weights, mask=mask, chunk=2)) == pytest.approx(
        float(expected), rel=1e-5
    )


@pytest.mark.parametrize("name", SHAPES)
def test_a_query_that_sees_one_key_or_none_gives_exactly_0(name: str) -> None:
    (q, k, scale), teacher = (_side(n, *shape) for n, shape in enumerate(SHAPES[name]))
    q, k = q.requires_grad_(), k.requires_grad_()
    mask = torch.eye(L, dtype=torch.bool)
    mask[4] = False
    mask[6, 5] = True
    weights = torch.ones(L)
    weights[6] = 0.0
    alone = _kl((q, k, scale), teacher, weights, mask=mask)
    alone.backward()
    assert q.grad is not None
    assert k.grad is not None
    assert float(alone.detach()) == float(q.grad.abs().sum()) == float(k.grad.abs().sum()) == 0.0
    weights[6] = 1.0
    _kl((q, k, scale), teacher, weights, mask=mask).backward()
    assert q.grad.abs().sum((0, 2)).nonzero()[:, 0].tolist() == [6]
    assert k.grad.abs().sum((0, 2)).nonzero()[:, 0].tolist() == [5, 6]


def _all_finite(value: Tensor, *learning: Tensor) -> None:
    value.backward()
    assert torch.isfinite(value)
    for one in learning:
        assert one.grad is not None
        assert torch.isfinite(one.grad).all()


@pytest.mark.parametrize("name", SHAPES)
def test_certainty_of_both_sides_stays_finite(name: str) -> None:
    student, teacher = (_side(n, *shape) for n, shape in enumerate(SHAPES[name]))
    q, k = (100 * student[0]).requires_grad_(), student[1].requires_grad_()
    value = _kl((q, k, student[2]), (100 * teacher[0], teacher[1], teacher[2]), torch.ones(L))
    _all_finite(value, q, k)


def test_queries_of_weight_0_and_keys_nobody_sees_are_not_touched() -> None:
    (q, k, scale), teacher = _side(0, 4, 2, 8), _side(1, 4, 2, 8)
    q[:, 3] = math.nan
    k[:, 5:] = math.nan
    q, k = q.requires_grad_(), k.requires_grad_()
    weights = torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0])
    value = _kl((q, k, scale), teacher, weights)
    _all_finite(value, q, k)


def test_without_weighted_queries_it_is_0_and_can_still_be_differentiated() -> None:
    (q, k, scale), teacher = _side(0, 4, 2, 8), _side(1, 4, 2, 8)
    q.requires_grad_()
    value = _kl((q, k, scale), teacher, torch.zeros(L))
    value.backward()
    assert q.grad is not None
    assert float(value.detach()) == float(q.grad.abs().sum()) == 0.0


def test_the_teacher_learns_nothing_and_without_gradients_the_value_is_the_same() -> None:
    student, teacher = _side(0, 4, 2, 8), _side(1, 4, 2, 8)
    student[0].requires_grad_()
    teacher[0].requires_grad_()
    value = _kl(student, teacher, torch.ones(L))
    value.backward()
    assert teacher[0].grad is None
    with torch.no_grad():
        plain = _kl(student, teacher, torch.ones(L))
    assert not plain.requires_grad
    assert torch.equal(plain, value.detach())


def test_half_precision_goes_in_and_comes_back_and_softmaxes_are_wide() -> None:
    (q, k, scale), teacher = _side(0, 4, 2, 8), _side(1, 4, 2, 8)
    half_q, half_k = q.bfloat16().requires_grad_(), k.bfloat16().requires_grad_()
    value = _kl((half_q, half_k, scale), teacher, torch.ones(L))
    value.backward()
    assert value.dtype == torch.float32
    assert half_q.grad is not None
    assert half_k.grad is not None
    assert half_q.grad.dtype == half_k.grad.dtype == torch.bfloat16
    wide = _kl((q, k, scale), teacher, torch.ones(L))
    torch.testing.assert_close(value, wide, rtol=0.05, atol=0.0)


def test_sides_of_different_length_are_refused() -> None:
    with pytest.raises(TrainingError, match="cannot be compared"):
        _kl(_side(0, 4, 2, 8), _side(1, 4, 2, 8, queries=5), torch.ones(L))


class _Recorded:
    """The queries, keys and scale of every layer, as transformers' eager attention gets them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from transformers.models.llama import modeling_llama

        self.layers: list[Side] = []
        eager = modeling_llama.eager_attention_forward

        def record(module: Any, q: Tensor, k: Tensor, *rest: Any, **options: Any) -> Any:
            self.layers.append((q[0].detach(), k[0].detach(), options["scaling"]))
            return eager(module, q, k, *rest, **options)

        monkeypatch.setattr(modeling_llama, "eager_attention_forward", record)


def _attentions(recorded: _Recorded, folder: Any, seed: int) -> tuple[list[Side], Any]:
    """Queries and keys of a model's layers, and its attention maps [1, H, L, L] of each."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    if seed:
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.2 * torch.randn_like(parameter)
    recorded.layers = []
    ids = torch.randint(0, 200, (1, L), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        maps = model(input_ids=ids, output_attentions=True, use_cache=False).attentions
    return recorded.layers, maps


@pytest.mark.parametrize("weighted", [False, True])
def test_it_equals_torch_kl_div_of_the_maps_that_transformers_returns(
    teacher_folder: Any, monkeypatch: pytest.MonkeyPatch, weighted: bool
) -> None:
    recorded = _Recorded(monkeypatch)
    students, student_maps = _attentions(recorded, teacher_folder, 1)
    teachers, teacher_maps = _attentions(recorded, teacher_folder, 0)
    assert len(students) == len(teachers) == len(student_maps) == 4
    heads, key_heads = teachers[0][0].shape[0], teachers[0][1].shape[0]
    assert heads > key_heads  # grouped queries, or this would not test them
    weights = torch.rand(L) if weighted else torch.ones(L)
    for layer in range(4):
        seen = _causal()
        q, p = (maps[layer][0].double() for maps in (student_maps, teacher_maps))
        each = F.kl_div(q.clamp_min(1e-300).log(), p, reduction="none").masked_fill(~seen, 0.0)
        expected = float((each.sum(-1).mean(0) * weights).sum())
        assert expected > 0.01
        value = _kl(students[layer], teachers[layer], weights, chunk=4)
        assert float(value) == pytest.approx(expected, rel=1e-5)


def test_the_averaged_maps_are_those_that_transformers_returns(
    teacher_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = _Recorded(monkeypatch)
    students, student_maps = _attentions(recorded, teacher_folder, 1)
    teachers, teacher_maps = _attentions(recorded, teacher_folder, 0)
    q, k, scale = students[1]
    shared = q.shape[0] // k.shape[0]
    fewer = (q[:shared], k[:1], scale)  # a student with one key head
    mean_q = student_maps[1][0, :shared].double().mean(0)
    mean_p = teacher_maps[1][0].double().mean(0)
    each = F.kl_div(mean_q.clamp_min(1e-300).log(), mean_p, reduction="none")
    expected = float(np.sum(each.masked_fill(~_causal(), 0.0).numpy()))
    assert expected > 0.01
    assert float(_kl(fewer, teachers[1], torch.ones(L))) == pytest.approx(expected, rel=1e-5)
