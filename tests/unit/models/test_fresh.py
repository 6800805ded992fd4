"""A model that is not trained yet is drawn once, always the same, and then is like any other."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from potstill.errors import ModelError
from potstill.models.load import load_model, load_tokenizer, model_folder
from potstill.models.refs import digest, parse, shapes
from potstill.models.size import expected_parameters, folder_config
from potstill.models.tokens import splitting_rule
from potstill.models.vocabulary import vocabulary_of

MINI = "fresh:gpt2-mini"


@pytest.fixture
def shape(tmp_path: Path) -> Path:
    """A narrow copy of the shape, so that drawing it takes no time."""
    folder = Path(shutil.copytree(shapes()["gpt2-mini"], tmp_path / "shape"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"n_embd": 16, "n_head": 2, "n_layer": 2, "n_positions": 64}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_everything_is_known_before_it_is_drawn(own_cache: Path) -> None:
    reference = parse(MINI)
    assert (reference.kind, reference.path) == ("fresh", shapes()["gpt2-mini"])
    assert len(digest(reference)) == 64
    config = folder_config(MINI)
    assert config is not None
    assert config["model_type"] == "gpt2"
    words = vocabulary_of(MINI)
    assert words is not None
    assert len(words) == config["vocab_size"]
    before = expected_parameters(MINI)
    assert not (own_cache / "models").exists()
    assert before == sum(one.numel() for one in load_model(MINI).parameters())


def test_it_is_drawn_once_and_the_same_everywhere(
    shape: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    state = torch.get_rng_state()
    folder = model_folder(f"fresh:{shape}")
    assert torch.equal(torch.get_rng_state(), state)  # the run's own lots are left alone
    written = (folder / "model.safetensors").stat().st_mtime_ns
    first = load_model(folder).state_dict()
    assert model_folder(f"fresh:{shape}") == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "another"))
    torch.manual_seed(99)
    again = load_model(f"fresh:{shape}").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in first.items())
    spread = first["transformer.h.0.attn.c_attn.weight"].std()
    assert spread == pytest.approx(0.02, rel=0.1)  # GPT-2's own


def test_another_shape_is_another_model(shape: Path, own_cache: Path) -> None:
    before = digest(parse(f"fresh:{shape}"))
    config = json.loads((shape / "config.json").read_text())
    (shape / "config.json").write_text(json.dumps(config | {"n_layer": 3}))
    assert digest(parse(f"fresh:{shape}")) != before


def test_two_processes_that_draw_at_once_find_one_folder(shape: Path, own_cache: Path) -> None:
    code = f"from potstill.models.load import model_folder; print(model_folder('fresh:{shape}'))"
    both = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = {one.communicate(timeout=200)[0].strip() for one in both}
    assert [one.returncode for one in both] == [0, 0]
    assert said == {str(model_folder(f"fresh:{shape}"))}
    assert [one.name for one in (own_cache / "models").iterdir() if one.name[0] == "."] == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fresh:gpt2-mni", "Did you mean fresh:gpt2-mini?"),
        ("fresh:", "There is no shape of a model ''"),
        ("fresh:some/where", "Known: fresh:gpt2-mini"),
    ],
)
def test_a_wrong_name_says_what_is_right(text: str, words: str) -> None:
    with pytest.raises(ModelError) as caught:
        parse(text)
    assert words in str(caught.value)


def test_a_folder_that_cannot_be_drawn_says_why(shape: Path, own_cache: Path) -> None:
    (shape / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"holds weights .* without fresh:"):
        parse(f"fresh:{shape}")
    (shape / "model.safetensors").unlink()
    config = json.loads((shape / "config.json").read_text())
    (shape / "config.json").write_text(json.dumps(config | {"vocab_size": 5, "eos_token_id": 0}))
    with pytest.raises(ModelError, match=r"vocab_size of its config\.json is 5"):
        model_folder(f"fresh:{shape}")
    assert list((own_cache / "models").glob("*-fresh")) == []
    (shape / "config.json").write_text(json.dumps({"model_type": "of-tomorrow"}))
    with pytest.raises(ModelError, match="not a config that transformers"):
        model_folder(f"fresh:{shape}")
    (shape / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"has no tokenizer\.json"):
        parse(f"fresh:{shape}")


def test_the_shapes_tokenizer_follows_gpt2_and_knows_every_byte(own_cache: Path) -> None:
    tokenizer = load_tokenizer(MINI)
    assert splitting_rule(tokenizer) == "gpt-2"
    assert tokenizer.eos_token == tokenizer.bos_token == "<|endoftext|>"
    assert tokenizer.pad_token is None  # never the token that ends an answer
    assert tokenizer.chat_template is None
    text = "Zürich 你好 🚀 I'll\n\n pay 1310?"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer("Question: Who?").input_ids[0] != tokenizer.bos_token_id
    total = sum(one.stat().st_size for one in shapes()["gpt2-mini"].iterdir())
    assert total < 300_000
