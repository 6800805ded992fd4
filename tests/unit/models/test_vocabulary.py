"""The vocabulary that is read before a run begins is the one that the tokenizer will have."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from potstill.models.cache import converted_folder, file_sha256
from potstill.models.load import load_tokenizer
from potstill.models.vocabulary import vocabulary_of


@pytest.fixture
def hub_cache(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's own cache with org/tiny in it, as huggingface_hub lays it out."""
    from huggingface_hub import constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    model = tmp_path / "hub" / "models--org--tiny"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(commit)
    shutil.copytree(tiny_folder, model / "snapshots" / commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(model.parent))
    return model.parent


def test_a_hub_model_that_is_cached_here_is_read(hub_cache: Path, tiny_folder: Path) -> None:
    assert vocabulary_of("org/tiny") == load_tokenizer(tiny_folder).get_vocab()
    assert vocabulary_of("org/never-fetched") is None


def test_a_gguf_is_read_as_it_is_converted_now(
    tiny_ggufs: dict[str, Path], own_cache: Path
) -> None:
    gguf = next(iter(tiny_ggufs.values()))
    assert vocabulary_of(str(gguf)) is None
    known = load_tokenizer(gguf).get_vocab()
    assert vocabulary_of(str(gguf)) == known
    now = converted_folder(file_sha256(gguf))
    stale = now.with_name(now.name.rpartition("-v")[0] + "-v0")
    stale.mkdir()
    state = {"model": {"vocab": {"old": 0}}, "added_tokens": []}
    (stale / "tokenizer.json").write_text(json.dumps(state))
    assert vocabulary_of(str(gguf)) == known
