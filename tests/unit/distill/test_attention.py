"""Attention within segments against plain softmax in float64, and real models packed and alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from potstill.distill import attention, probe
from potstill.distill.attention import Segment, segment_attention
from potstill.distill.batches import Row, RowSet
from potstill.distill.objective import ActiveTokens
from potstill.models.body import body_of

HEADS, GROUPS, WIDTH = 9, 3, 8
LENGTHS = (5, 1, 11, 7)
MODULE = SimpleNamespace(training=False, layer_idx=0)


def plain_segments(lengths: Sequence[int] = LENGTHS) -> list[Segment]:
    starts = [sum(lengths[:number]) for number in range(len(lengths))]
    return [Segment(start, length) for start, length in zip(starts, lengths, strict=True)]


def tree_segments() -> list[Segment]:
    """A beginning of 4 tokens with three ends (3, 5 and 1 tokens), between two plain segments."""
    shared, ends = 4, (3, 5, 1)
    size = shared + sum(ends)
    positions, sees = torch.arange(size), torch.zeros(size, size, dtype=torch.bool)
    sees[:, :shared] = True
    sees[:shared, :shared] = True
    first = shared
    for end in ends:
        own = slice(first, first + end)
        positions[own] = torch.arange(shared, shared + end)
        sees[own, own] = True
        first += end
    return [Segment(0, 3), Segment(3, size, positions, sees.tril()), Segment(3 + size, 6)]


def long_segments() -> list[Segment]:
    """Longer than one block of queries, with positions that go on elsewhere than from 0."""
    return [Segment(0, 13, torch.arange(13)), Segment(13, 9, torch.arange(9))]


def inputs(tokens: int, seed: int = 0, heads: int = HEADS, groups: int = GROUPS) -> list[Tensor]:
    """q [1, heads, tokens, width], k and v [1, groups, tokens, width]; float64."""
    make = torch.Generator().manual_seed(seed)
    return [
        torch.randn(1, count, tokens, WIDTH, generator=make, dtype=torch.float64)
        for count in (heads, groups, groups)
    ]


def tokens_of(segments: Sequence[Segment]) -> int:
    return sum(segment.length for segment in segments)


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: Sequence[Segment],
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Token by token, head by head, from the definition: [1, N, H, d]."""
    out: list[list[Tensor]] = []
    repeats = q.shape[1] // k.shape[1]
    for segment in segments:
        for query in range(segment.length):
            at = segment.positions
            place = [int(at[n]) if at is not None else n for n in range(segment.length)]
            seen = [
                key
                for key in range(segment.length)
                if (segment.visible[query, key] if segment.visible is not None else key <= query)
                and (window is None or place[query] - place[key] < window)
            ]
            keys = torch.tensor(seen) + segment.start
            heads = []
            for head in range(q.shape[1]):
                own = q[0, head, segment.start + query]
                scores = k[0, head // repeats, keys] @ own * scale
                if softcap is not None:
                    scores = softcap * torch.tanh(scores / softcap)
                heads.append(torch.softmax(scores, -1) @ v[0, head // repeats, keys])
            out.append(heads)
    return torch.stack([torch.stack(heads) for heads in out]).unsqueeze(0)


def with_gradients(
    of: Callable[[Tensor, Tensor, Tensor], Tensor], tensors: Sequence[Tensor]
) -> list[Tensor]:
    """The value and the gradients of q, k and v under one fixed gradient from above."""
    leaves = [one.clone().requires_grad_() for one in tensors]
    value = of(*leaves)
    upward = torch.randn(value.shape, generator=torch.Generator().manual_seed(9))
    gradients = torch.autograd.grad((value * upward.to(value.dtype)).sum(), leaves)
    return [value.detach(), *gradients]


def assert_near(found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> None:
    for name, one, other in zip(("value", "q", "k", "v"), found, expected, strict=True):
        assert one.shape == other.shape
        error = float((one.double() - other.double()).norm() / other.double().norm())
        assert error < tolerance, f"{name} is off by {error:.1e}"


def check(
    segments: Sequence[Segment],
    *,
    window: int | None = None,
    softcap: float | None = None,
    scaling: float | None = None,
    heads: int = HEADS,
    groups: int = GROUPS,
    tolerance: float = 1e-5,
) -> None:
    """Value and gradients in fp32 against float64."""
    tensors = inputs(tokens_of(segments), heads=heads, groups=groups)
    scale = WIDTH**-0.5 if scaling is None else scaling
    expected = with_gradients(
        lambda q, k, v: reference(q, k, v, segments, scale, window, softcap), tensors
    )
    found = with_gradients(
        lambda q, k, v: segment_attention(
            MODULE,
            q,
            k,
            v,
            None,
            scaling=scaling,
            segments=segments,
            sliding_window=window,
            softcap=softcap,
        )[0],
        [one.float() for one in tensors],
    )
    assert_near(found, expected, tolerance)


SHAPES = {"plain": plain_segments, "tree": tree_segments, "long": long_segments}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("window", [None, 3, 100])
@pytest.mark.parametrize("block", [4, 256])
def test_multiplied_attention_is_softmax_within_each_segment(
    monkeypatch: pytest.MonkeyPatch, shape: str, window: int | None, block: int
) -> None:
    monkeypatch.setattr(attention, "QUERY_BLOCK", block)
    check(SHAPES[shape](), window=window)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("window", [None, 3])
def test_long_segments_go_the_way_of_pytorch_and_give_the_same(
    monkeypatch: pytest.MonkeyPatch, shape: str, window: int | None
) -> None:
    monkeypatch.setattr(attention, "LONGEST_EXPLICIT", 8)
    monkeypatch.setattr(attention, "_Multiplied", None)  # must not be reached
    check(SHAPES[shape](), window=window)


def test_a_segment_at_the_limit_is_still_multiplied_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "LONGEST_EXPLICIT", max(LENGTHS))
    monkeypatch.setattr(attention, "_one", None)  # must not be reached
    check(plain_segments())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("window", [None, 3])
def test_capped_scores_are_those_of_gemma_2(shape: str, window: int | None) -> None:
    check(SHAPES[shape](), window=window, softcap=0.7, scaling=0.9)


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (9, 3), (6, 1)])
def test_grouped_queries_use_the_keys_of_their_group(heads: int, groups: int) -> None:
    check(plain_segments(), heads=heads, groups=groups, scaling=0.2)


def test_scores_of_any_size_stay_finite() -> None:
    # Scores of hundreds are rounded by their own size before they are exponents: 1e-7 * 500.
    check(plain_segments(), scaling=60.0, tolerance=1e-3)


def test_without_gradients_nothing_is_kept_and_the_value_is_the_same() -> None:
    segments = tree_segments()
    tensors = [one.float() for one in inputs(tokens_of(segments))]
    learning = segment_attention(
        MODULE, *[t.requires_grad_() for t in tensors], None, segments=segments
    )
    with torch.no_grad():
        measuring = segment_attention(MODULE, *tensors, None, segments=segments)
    assert not measuring[0].requires_grad
    assert torch.equal(measuring[0], learning[0])


def test_a_gradient_is_given_to_those_that_ask_alone() -> None:
    segments = plain_segments()
    q, k, v = (one.float() for one in inputs(tokens_of(segments)))
    whole = with_gradients(
        lambda *all_: segment_attention(MODULE, *all_, None, segments=segments)[0], [q, k, v]
    )
    alone = k.clone().requires_grad_()
    value = segment_attention(MODULE, q, alone, v, None, segments=segments)[0]
    upward = torch.randn(value.shape, generator=torch.Generator().manual_seed(9))
    (gradient,) = torch.autograd.grad((value * upward).sum(), alone)
    assert torch.equal(gradient, whole[2])


@pytest.mark.parametrize("way", ["multiplied", "pytorch", "capped"])
def test_bf16_under_autocast_stays_near_fp32(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    if way == "pytorch":
        monkeypatch.setattr(attention, "LONGEST_EXPLICIT", 8)
    segments = tree_segments()
    softcap = 5.0 if way == "capped" else None
    tensors = [one.float() for one in inputs(tokens_of(segments))]
    expected = with_gradients(
        lambda q, k, v: reference(q, k, v, segments, WIDTH**-0.5, None, softcap), tensors
    )

    def mixed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # As in a model: rotary embedding leaves q and k in fp32, v comes out of a bf16 product.
        with torch.autocast("cpu", torch.bfloat16):
            arguments = (q, k, v.bfloat16(), None)
            value = segment_attention(MODULE, *arguments, segments=segments, softcap=softcap)[0]
        assert value.dtype == torch.bfloat16
        return value

    found = with_gradients(mixed, tensors)
    assert [one.dtype for one in found[1:]] == [torch.float32] * 3
    assert_near(found, expected, 1e-2)


def test_models_in_bf16_without_autocast_stay_in_bf16() -> None:
    segments = plain_segments()
    tensors = [one.bfloat16() for one in inputs(tokens_of(segments))]
    found = with_gradients(
        lambda q, k, v: segment_attention(MODULE, q, k, v, None, segments=segments)[0], tensors
    )
    exact = with_gradients(
        lambda q, k, v: reference(q, k, v, segments, WIDTH**-0.5, None, None),
        [one.double() for one in tensors],
    )
    assert {one.dtype for one in found} == {torch.bfloat16}
    assert_near(found, exact, 2e-2)


@pytest.mark.parametrize("longest", [8, 1024])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_one_segment_never_touches_another(
    monkeypatch: pytest.MonkeyPatch, longest: int, softcap: float | None
) -> None:
    monkeypatch.setattr(attention, "LONGEST_EXPLICIT", longest)
    segments = tree_segments()
    q, k, v = (one.float() for one in inputs(tokens_of(segments)))
    start, size = segments[1].start, segments[1].length
    inside = torch.zeros(tokens_of(segments), dtype=torch.bool)
    inside[start : start + size] = True

    def of(*all_: Tensor) -> Tensor:
        return segment_attention(MODULE, *all_, None, segments=segments, softcap=softcap)[0]

    before = with_gradients(of, [q, k, v])
    changed = [one.clone() for one in (q, k, v)]
    for one in changed:
        one[:, :, inside] = 1e3 * torch.randn(one[:, :, inside].shape)
    after = with_gradients(of, changed)
    assert torch.equal(before[0][:, ~inside], after[0][:, ~inside])
    assert not torch.equal(before[0][:, inside], after[0][:, inside])
    for one, other in zip(before[1:], after[1:], strict=True):
        assert torch.equal(one[:, :, ~inside], other[:, :, ~inside])


def test_the_ends_of_a_tree_never_touch_each_other() -> None:
    segments = tree_segments()
    q, k, v = (one.float() for one in inputs(tokens_of(segments)))
    first, second = slice(7, 10), slice(10, 15)  # after 3 tokens before and 4 of the beginning

    def of(*all_: Tensor) -> Tensor:
        return segment_attention(MODULE, *all_, None, segments=segments)[0]

    before = with_gradients(of, [q, k, v])
    for one in (q, k, v):
        one[:, :, first] += 50.0
    after = with_gradients(of, [q, k, v])
    assert torch.equal(before[0][:, second], after[0][:, second])
    assert torch.equal(before[1][:, :, second], after[1][:, :, second])


def test_queries_and_keys_of_asked_layers_are_left_for_attention_maps() -> None:
    segments = plain_segments()
    q, k, v = (one.float() for one in inputs(tokens_of(segments)))
    with attention.recorded([1]) as found:
        for layer in range(3):
            module = SimpleNamespace(training=False, layer_idx=layer)
            segment_attention(
                module, q + layer, k, v, None, segments=segments, sliding_window=4, scaling=0.5
            )
    assert set(found) == {1}
    assert torch.equal(found[1].queries, q[0] + 1)
    assert torch.equal(found[1].keys, k[0])
    assert (found[1].scale, found[1].window) == (0.5, 4)


# Real models, tiny.

COMMON = {
    "vocab_size": 60,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MIXED = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "qwen2": ("Qwen2", {}),
    "qwen2_windows": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 8, "layer_types": MIXED},
    ),
    "qwen3": ("Qwen3", {}),
    "gemma3": ("Gemma3", {"sliding_window": 8, "layer_types": MIXED}),
    "gemma2": (
        "Gemma2",
        {
            "sliding_window": 8,
            "layer_types": MIXED,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "mistral": ("Mistral", {"sliding_window": 8}),
}


def tiny(family: str, settings: dict[str, Any], common: dict[str, Any] = COMMON) -> Any:
    """A random model whose attention is far from uniform."""
    import transformers

    names = (f"{family}TextConfig", f"{family}Config")
    config = next(getattr(transformers, name) for name in names if hasattr(transformers, name))
    torch.manual_seed(3)
    model = getattr(transformers, f"{family}ForCausalLM")(config(**(common | settings)))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.3)
    return model.eval()


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Any:
    return tiny(*FAMILIES[request.param])


@pytest.fixture
def rows() -> list[Row]:
    """Rows of many lengths, most longer than a window of 8; the first three begin alike."""
    make = torch.Generator().manual_seed(5)
    beginning = torch.randint(3, 60, (40,), generator=make).tolist()
    found = []
    for number, length in enumerate((9, 21, 3, 30, 17, 2)):
        own = torch.randint(3, 60, (length,), generator=make).tolist()
        ids = (*(beginning if number < 3 else ()), *own)
        found.append(Row(f"row{number}", ids, len(ids) - 1))
    return found


def states_alone(model: Any, rows: Sequence[Row]) -> list[Tensor]:
    with torch.no_grad():
        return [
            body_of(model)(input_ids=torch.tensor([row.ids]), use_cache=False).last_hidden_state[0]
            for row in rows
        ]


def states_together(model: Any, rows: list[Row], share: bool) -> list[Tensor]:
    families = [(0, 1, 2), (3,), (4,), (5,)] if share else [(n,) for n in range(len(rows))]
    batch = RowSet(rows, families, True).collate(families, ActiveTokens("all", None), padding=0)
    with torch.no_grad():
        states = body_of(model)(**batch.inputs()).last_hidden_state.flatten(0, 1)
    found = dict(zip(batch.rows, batch.spans, strict=True))
    return [states[found[number].flat()] for number in range(len(rows))]


@pytest.mark.parametrize("share", [False, True])
def test_packed_states_are_those_of_rows_alone(model: Any, rows: list[Row], share: bool) -> None:
    alone = states_alone(model, rows)
    assert probe.says_the_same(model, rows, packed=True, share=share)
    for one, other in zip(states_together(model, rows, share), alone, strict=True):
        assert float((one - other).norm() / other.norm()) < 2e-5


@pytest.mark.parametrize("block", [4, 256])
def test_packed_gradients_are_those_of_rows_alone(
    monkeypatch: pytest.MonkeyPatch, model: Any, rows: list[Row], block: int
) -> None:
    monkeypatch.setattr(attention, "QUERY_BLOCK", block)
    wanted = {name: one for name, one in model.named_parameters() if "proj" in name}

    def gradients(states: Sequence[Tensor]) -> dict[str, Tensor]:
        make = torch.Generator().manual_seed(1)
        parts = [(one * torch.randn(one.shape, generator=make)).sum() for one in states]
        found = torch.autograd.grad(torch.stack(parts).sum(), list(wanted.values()))
        return dict(zip(wanted, found, strict=True))

    alone = gradients(
        [
            body_of(model)(input_ids=torch.tensor([row.ids]), use_cache=False).last_hidden_state[0]
            for row in rows
        ]
    )
    attention.use(model)
    families = [(0, 1, 2), (3,), (4,), (5,)]
    batch = RowSet(rows, families, True).collate(families, ActiveTokens("all", None), padding=0)
    states = body_of(model)(**batch.inputs()).last_hidden_state.flatten(0, 1)
    spans = dict(zip(batch.rows, batch.spans, strict=True))
    packed = gradients([states[spans[number].flat()] for number in range(len(rows))])
    for name, one in packed.items():
        error = float((one - alone[name]).norm() / alone[name].norm())
        assert error < 1e-4, f"{name} differs by {error:.1e}"


def test_a_prepared_model_given_no_segments_says_what_it_said_before(
    model: Any, rows: list[Row]
) -> None:
    before = states_alone(model, rows)
    attention.use(model)
    for one, other in zip(states_alone(model, rows), before, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    attention.unuse(model)
    for one, other in zip(states_alone(model, rows), before, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_padded_sequences_are_shared_only_where_no_window_would_be_lost(
    model: Any, rows: list[Row]
) -> None:
    """transformers takes a mask of four axes as it is, and leaves sliding windows out of it."""
    windows = getattr(model.config, "sliding_window", None) is not None
    alone, was = states_alone(model, rows), model.config._attn_implementation
    assert probe.says_the_same(model, rows, packed=False, share=True) is not windows
    assert model.config._attn_implementation == was
    for one, other in zip(states_alone(model, rows), alone, strict=True):
        assert torch.equal(one, other)


def test_a_model_that_sees_across_borders_is_found_out(
    monkeypatch: pytest.MonkeyPatch, rows: list[Row]
) -> None:
    model = tiny("Llama", {})

    def leaking(*arguments: Any, segments: Any = None, **others: Any) -> Any:
        if segments is not None:
            segments = [Segment(0, tokens_of(segments))]  # as if there were no borders
        return segment_attention(*arguments, segments=segments, **others)

    monkeypatch.setattr(attention, "segment_attention", leaking)
    assert not probe.says_the_same(model, rows, packed=True, share=False)
    assert model.config._attn_implementation == "sdpa"
    monkeypatch.undo()
    attention.use(model)  # its own again, for all tests after this one
    assert probe.says_the_same(model, rows, packed=True, share=False)


SINKS = {
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": 8,
    "layer_types": MIXED,
}


@pytest.mark.parametrize("share", [False, True])
def test_attention_with_sinks_is_not_packed_and_the_model_is_left_as_it_was(
    rows: list[Row], share: bool
) -> None:
    model = tiny("GptOss", SINKS)
    with torch.no_grad():
        for layer in body_of(model).layers:
            layer.self_attn.sinks.fill_(2.0)
    before, was = states_alone(model, rows), model.config._attn_implementation
    assert not probe.says_the_same(model, rows, packed=True, share=share)
    assert model.config._attn_implementation == was
    for one, other in zip(states_alone(model, rows), before, strict=True):
        assert torch.equal(one, other)


def test_a_model_that_takes_no_segments_is_left_as_it_was(rows: list[Row]) -> None:
    model = tiny("Llama", {})
    body = body_of(model)
    forward = type(body).forward

    class Strict(type(body)):  # type: ignore[misc]
        def forward(self, input_ids: Any, use_cache: bool = False, **others: Any) -> Any:
            if others:
                raise TypeError("unexpected keyword argument")
            return forward(self, input_ids=input_ids, use_cache=use_cache)

    body.__class__ = Strict
    before = copy.deepcopy(model.state_dict())
    alone = states_alone(model, rows)
    assert not probe.says_the_same(model, rows, packed=True, share=True)
    assert model.config._attn_implementation == "sdpa"
    assert not model.training
    for one, other in zip(states_alone(model, rows), alone, strict=True):
        assert torch.equal(one, other)
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
