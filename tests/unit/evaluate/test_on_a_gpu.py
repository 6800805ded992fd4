"""Models are measured on an NVIDIA GPU as on the processor, if there is one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from potstill.evaluate.answers import ReadPrompt, write_answers
from potstill.evaluate.forward import check_model, head_of, load_here
from potstill.evaluate.speed import measure_speed
from potstill.models.device import device_here
from potstill.models.prefix_reader import PrefixReader

on_a_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="a machine with an NVIDIA GPU runs it"
)
PROMPTS = [[256, 5, 6, 7, 8, 9, 10], [256, 70], [256, 33, 44, 55]]


def test_a_model_is_measured_where_models_compute(
    make_model: Callable[..., Any], save_model: Callable[[Any, Path], Path], tmp_path: Path
) -> None:
    model = load_here(save_model(make_model(seed=1), tmp_path / "one"))
    assert model.device.type == device_here().type
    assert device_here().type == ("cuda" if torch.cuda.is_available() else "cpu")


@on_a_gpu
@pytest.mark.cuda
@torch.inference_mode()
def test_states_answers_and_speed_are_those_of_the_processor(
    make_model: Callable[..., Any], save_model: Callable[[Any, Path], Path], tmp_path: Path
) -> None:
    folder = save_model(make_model(seed=1), tmp_path / "one")
    found: dict[str, tuple[torch.Tensor, list[list[int]]]] = {}
    for place in ("cpu", "cuda"):
        model = load_here(folder).to(place)
        head = head_of(model, 258)
        check_model(model, head, PROMPTS[0], "student")
        read, logits = [], []
        for ids in PROMPTS:
            reader = PrefixReader(model)
            logits.append(head.logits(reader.read(ids, 0)).cpu())
            first = int(logits[-1][-1].argmax())
            read.append(ReadPrompt(reader.prefix(len(ids)), len(ids), first))
        answers = write_answers(model, read, frozenset(), 8, 258)
        found[place] = torch.cat(logits), [one.ids for one in answers]
    torch.testing.assert_close(found["cuda"][0], found["cpu"][0], rtol=1e-4, atol=1e-4)
    assert found["cuda"][1] == found["cpu"][1]
    speeds = measure_speed({"one": lambda: load_here(folder)}, {"one": PROMPTS[0]}, 4, 1, (2,))
    assert speeds["one"].tokens_per_second > 0
    assert speeds["one"].peak_memory_bytes > 0
