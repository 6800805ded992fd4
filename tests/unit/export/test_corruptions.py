"""What can go wrong between the student and a file, planted: the gate catches each, in one line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from potstill.core.stage import Draft
from potstill.errors import ModelError, PotstillError, StoreError
from potstill.export import STAGE
from potstill.export.blocks import block_errors
from potstill.export.gguf import convert, quantize
from potstill.export.measure import check_files
from potstill.models import native
from potstill.models.load import load_tokenizer

Change = Callable[[Path], None]


def tensor(path: Path, name: str) -> Any:
    """The tensor's own numbers in the file: what is written to them is written to it."""
    from gguf import GGUFReader

    return next(one for one in GGUFReader(path, "r+").tensors if one.name == name).data


def swap(path: Path) -> None:
    first, second = (tensor(path, f"blk.{layer}.ffn_gate.weight") for layer in (0, 1))
    kept = np.array(first)
    first[:] = second
    second[:] = kept


def transpose_a_head(path: Path) -> None:
    """The rows of a query head as Hugging Face orders them, not as llama.cpp does."""
    rows = tensor(path, "blk.0.attn_q.weight")[:16]
    rows[:] = np.array(rows).reshape(8, 2, -1).swapaxes(0, 1).reshape(16, -1)


def turn_faster(path: Path) -> None:
    """Another RoPE base."""
    field(path, "llama.rope.freq_base")[:] = 500.0


def forget_a_layer(path: Path) -> None:
    tensor(path, "blk.1.ffn_down.weight")[:] = 0


def not_a_number(path: Path) -> None:
    tensor(path, "blk.1.ffn_down.weight")[0, 0] = np.nan


def break_the_template(path: Path) -> None:
    data = path.read_bytes()
    assert data.count(b"assistant\n{% endif %}") == 1
    path.write_bytes(data.replace(b"assistant\n{% endif %}", b"assistant:{% endif %}"))


def another_end(path: Path) -> None:
    """Generation would end at some word too."""
    field(path, "tokenizer.ggml.eos_token_id")[:] = 77


def cut_off(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


def another_architecture(path: Path) -> None:
    data = path.read_bytes()
    place = data.index(b"general.architecture") + len(b"general.architecture") + 12
    assert data[place : place + 5] == b"llama"
    path.write_bytes(data[:place] + b"lemma" + data[place + 5 :])


def field(path: Path, name: str) -> Any:
    from gguf import GGUFReader

    found = GGUFReader(path, "r+").fields[name]
    return found.parts[found.data[0]]


CORRUPTIONS: dict[str, tuple[Change, str]] = {
    "a swapped tensor": (swap, "lost more than it may"),
    "a transposed head": (transpose_a_head, "lost more than it may"),
    "a wrong RoPE base": (turn_faster, "lost more than it may"),
    "a missing layer": (forget_a_layer, "lost more than it may"),
    "a NaN": (not_a_number, "not a number|does not stop"),
    "a broken chat template": (break_the_template, "renders a user conversation differently"),
    "another end token": (another_end, "takes token 77 for its end token, and the student 2"),
    "a truncated file": (cut_off, "truncated|not a whole GGUF"),
    "an unknown architecture": (another_architecture, "llama.cpp cannot"),
}


@pytest.mark.parametrize("what", CORRUPTIONS)
def test_a_corrupted_file_fails_the_run_in_one_line_and_is_deleted(
    what: str, exporting: Any, tmp_path: Path
) -> None:
    change, words = CORRUPTIONS[what]
    draft = Draft(tmp_path)
    draft.data.mkdir(parents=True)
    draft.work.mkdir()
    file = draft.data / "student-f16.gguf"
    shutil.copy(exporting.draft.data / file.name, file)
    change(file)
    config = exporting.config.model_copy(update={"quantisations": ()})
    with pytest.raises(ModelError, match=words):
        STAGE.load()(config, exporting.inputs, draft, exporting.context)
    assert not file.exists()
    assert not (draft.data / "export.json").exists()


@pytest.mark.parametrize(("kind", "name"), [("q8_0", "output"), ("q4_0", "blk.1.ffn_up")])
@pytest.mark.parametrize("damage", ["scale", "swapped", "nan"])
def test_one_wrong_block_of_thousands_is_caught(
    kind: str, name: str, damage: str, tiny_ggufs: dict[str, Path], tmp_path: Path
) -> None:
    file = tmp_path / "student.gguf"
    shutil.copy(tiny_ggufs[kind], file)
    assert block_errors(tiny_ggufs["f16"], file)
    name = "token_embd.weight" if name == "output" else f"{name}.weight"
    size = {"q8_0": 34, "q4_0": 18}[kind]
    block = tensor(file, name)[3][:size]
    scale = block[:2].view(np.float16)
    if damage == "scale":
        scale *= 2
    elif damage == "nan":
        scale[:] = np.nan
    else:
        block[2:] = np.array(block[2:])[::-1]
    with pytest.raises(ModelError, match=r"holds a damaged block of type Q[48]_0, in row 3"):
        block_errors(tiny_ggufs["f16"], file)


def test_a_file_that_forgets_its_first_token_is_caught(
    make_pieces: Callable[..., Any], random_model: Callable[..., Any], tmp_path: Path
) -> None:
    from potstill.models.save import save_model

    tokenizer = make_pieces()
    model = random_model(vocab_size=len(tokenizer), bos_token_id=2, eos_token_id=5, pad_token_id=0)
    save_model(model, tokenizer, tmp_path / "model")
    file = tmp_path / "student.gguf"
    convert(tmp_path / "model", file, tokenizer, "student")
    check_files({"f16": file}, None, load_tokenizer(tmp_path / "model"), [])
    field(file, "tokenizer.ggml.add_bos_token")[:] = 0
    with pytest.raises(ModelError, match="as different tokens"):
        check_files({"f16": file}, None, load_tokenizer(tmp_path / "model"), [])


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_a_disk_that_fills_is_one_line_and_leaves_no_file(
    kind: str, full_disk: Path, tiny_folder: Path, tiny_ggufs: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "student.gguf"
    (tmp_path / ".student.gguf.part").symlink_to(full_disk)
    tokenizer = load_tokenizer(tiny_folder)
    write = {
        "f16": lambda: convert(tiny_folder, out, tokenizer, "student"),
        "q8_0": lambda: quantize(tiny_ggufs["f16"], out, kind, 1),
    }[kind]
    with pytest.raises(StoreError, match=r"Cannot write .*student\.gguf: No space left"):
        write()
    assert list(tmp_path.iterdir()) == []
    assert full_disk.exists()


def test_a_model_of_an_unknown_architecture_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace("LlamaForCausalLM", "LemmaForCausalLM"))
    with pytest.raises(ModelError, match=r"converter cannot turn .*LemmaForCausalLM"):
        convert(folder, tmp_path / "out.gguf", load_tokenizer(tiny_folder), "student")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_quantising_a_truncated_file_is_refused(
    tiny_ggufs: dict[str, Path], tmp_path: Path
) -> None:
    source = tmp_path / "source.gguf"
    shutil.copy(tiny_ggufs["f16"], source)
    cut_off(source)
    with pytest.raises(PotstillError, match=r"cannot quantize .*source\.gguf"):
        quantize(source, tmp_path / "out.gguf", "q8_0", 1)
    with pytest.raises(ModelError, match="cannot tokenize"):
        native.tokenize(source, ["a"], add_special=False)
    assert [path.name for path in tmp_path.iterdir()] == ["source.gguf"]
