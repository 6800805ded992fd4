"""Shapes that meet a target: they do, their heads come in groups, and none could be larger."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.errors import ModelError
from potstill.models.shape import FAMILIES, Shape
from potstill.models.targets import Target, find, head_counts, loads
from potstill.models.width import check_heads


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    groups = draw(st.integers(1, 6))
    return Shape(
        family=draw(st.sampled_from(sorted(FAMILIES))),
        vocabulary=draw(st.integers(10, 2000)),
        layers=draw(st.integers(1, 12)),
        hidden=draw(st.integers(8, 200)) * 4,
        intermediate=draw(st.integers(4, 300)) * 4,
        heads=groups * draw(st.integers(1, 5)),
        kv_heads=groups,
        head_dim=draw(st.sampled_from([4, 8, 64])),
        tied=draw(st.booleans()),
        input_bias=draw(st.booleans()),
        output_bias=draw(st.booleans()),
        mlp_bias=draw(st.booleans()),
    )


@settings(max_examples=60, deadline=None)
@given(
    shape=shapes(),
    ratio=st.floats(0.02, 1),
    reading=st.booleans(),
    axes=st.sampled_from(["depth", "width", "both"]),
    round_to=st.sampled_from([1, 32, 256]),
)
def test_what_is_found_meets_the_target(
    shape: Shape, ratio: float, reading: bool, axes: str, round_to: int
) -> None:
    whole = Target(0, "", reading).counted(shape)
    target = Target(ratio * whole, "ratio", reading)
    try:
        found = find(shape, target, axes, round_to)  # type: ignore[arg-type]
    except ModelError:
        least = replace(shape, layers=1 if axes != "width" else shape.layers)
        if axes != "depth":
            least = replace(least, hidden=24, intermediate=24, heads=1, kv_heads=1)
        assert not target.met(least) or min(shape.hidden, shape.intermediate) < 24
        return
    assert found.shapes
    for one in found.shapes:
        assert target.met(one)
        check_heads(shape, one)
        for name in ("hidden", "intermediate"):
            size = getattr(one, name)
            assert size == getattr(shape, name) or size % found.round_to == 0
        assert one.layers == shape.layers or axes != "width"
        assert replace(one, layers=shape.layers) == shape or axes != "depth"
        if one.layers < shape.layers:
            assert not target.met(replace(one, layers=one.layers + 1))


@given(heads=st.integers(1, 8), groups=st.integers(1, 8))
def test_heads_that_are_left_come_in_whole_groups(heads: int, groups: int) -> None:
    counts = head_counts(heads * groups, groups)
    assert counts[0] == (heads * groups, groups)
    assert len(set(counts)) == heads * groups
    for left, keys in counts:
        assert left % keys == 0
        assert left // keys <= heads
        assert keys <= groups


SMOL = Shape(49152, 30, 576, 1536, 9, 3, 64, tied=True, family="llama")


def test_the_sizes_of_a_real_model() -> None:
    assert SMOL.parameters == SMOL.read_parameters == 134_515_008
    untied = replace(SMOL, tied=False)
    assert untied.parameters - untied.read_parameters == 49151 * 576
    assert loads(SMOL, 512, 9)  # as a Mistral
    assert not loads(replace(SMOL, input_bias=True), 512, 9)
    found = find(SMOL, Target(100_000_000, "parameters"), "both", 256)
    assert found.round_to == 256
    assert {one.hidden for one in found.shapes} == {576, 512, 256}


def test_a_target_that_cannot_be_met_says_what_is_the_least() -> None:
    with pytest.raises(ModelError, match=r"cut along depth has 31,852,224 \(24%\)"):
        find(SMOL, Target(20e6, "parameters: 2e+07"), "depth", 256)


def test_rounding_gives_way_where_no_multiple_is_small_enough() -> None:
    small = Shape(100, 2, 96, 200, 4, 2, 8, tied=True, family="llama")
    found = find(small, Target(0.5 * small.parameters, "ratio"), "width", 256)
    assert found.round_to == 64
