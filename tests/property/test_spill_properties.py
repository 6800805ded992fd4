"""States on disk between two layers: whatever the sizes and wherever it is killed, what comes back
is what was written."""

from __future__ import annotations

import tempfile
from pathlib import Path
from unittest.mock import patch

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from potstill.distill.spill import Spill


def made(layer: int, batch: int, tokens: int, width: int, dtype: torch.dtype) -> Tensor:
    """What a layer makes of a batch: always the same."""
    generator = torch.Generator().manual_seed(1000 * layer + batch)
    return torch.randn(tokens, width, generator=generator).to(dtype)


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    width=st.integers(1, 17),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    layers=st.integers(1, 4),
    kills=st.lists(st.integers(0, 12), max_size=4),
    often=st.booleans(),
)
def test_what_comes_back_is_what_was_written(
    tokens: list[int],
    width: int,
    dtype: torch.dtype,
    layers: int,
    kills: list[int],
    often: bool,
) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        patch("potstill.distill.spill.NOTE_SECONDS", -1.0 if often else 1e9),
    ):
        before = (0, 0)
        for kill in [*kills, layers * len(tokens)]:
            spill = Spill(Path(folder) / "states", {"who": "me"}, tokens, width, dtype)
            assert (spill.layer, spill.done) >= (before[0], 0)
            for _ in range(kill):
                layer, batch = spill.layer, spill.done
                if layer == layers:
                    break
                if layer:
                    wanted = made(layer - 1, batch, tokens[batch], width, dtype)
                    assert torch.equal(spill.read(batch), wanted)
                spill.write(batch, made(layer, batch, tokens[batch], width, dtype))
            before = (spill.layer, spill.done)
            if kill == layers * len(tokens):
                assert before == (layers, 0)
                for batch, count in enumerate(tokens):
                    wanted = made(layers - 1, batch, count, width, dtype)
                    assert torch.equal(spill.result(batch), wanted)
            spill.close()
