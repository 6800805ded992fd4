"""Which engine a reference gets, and what identifies its replies."""

from __future__ import annotations

from pathlib import Path

import pytest

from potstill.errors import ModelError
from potstill.inference.base import Request
from potstill.inference.open import engine_identity, open_model, resolve_backend
from potstill.records import Turn


@pytest.fixture
def gguf(tmp_path: Path) -> str:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUF" + bytes(64))
    return str(path)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return str(tmp_path / "model")


def test_auto_takes_llamacpp_for_a_gguf_and_transformers_for_a_folder(
    gguf: str, folder: str
) -> None:
    assert resolve_backend(gguf) == "llamacpp"
    assert resolve_backend(folder) == "transformers"
    assert resolve_backend(gguf, "transformers") == "transformers"
    assert resolve_backend("anything", "fake") == "fake"


def test_llamacpp_for_a_folder_is_refused_with_a_way_out(folder: str) -> None:
    with pytest.raises(ModelError, match="is not a GGUF file") as caught:
        resolve_backend(folder, "llamacpp")
    assert "transformers" in caught.value.hint


def test_identity_names_model_content_and_engine(gguf: str, tmp_path: Path) -> None:
    identity = engine_identity(gguf)
    assert "xllamacpp" in identity
    Path(gguf).write_bytes(b"GGUF" + bytes(65))
    assert engine_identity(gguf) != identity
    assert engine_identity("no matter", "fake") == "fake 1"


def test_a_fake_needs_no_model() -> None:
    with open_model("no such model", "fake") as model:
        assert len(list(model.complete([Request((Turn(role="user", content="a b"),))]))) == 1
