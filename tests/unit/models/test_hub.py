"""The hub, as its own library meets it: each thing that stands in the way is one clear line, before
anything is fetched; what was fetched once needs no hub any more."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_stand_in import COMMIT, TOKEN, HubStandIn, Repository, forget, standing_in

from potstill.errors import ModelError, StoreError, UnavailableError
from potstill.models import hub
from potstill.models.refs import digest, hub_snapshot, parse
from potstill.models.size import expected_parameters, folder_config, parameters

WHOLE = {
    "config.json": b"{}",
    "model.safetensors": b"weights",
    "tokenizer.json": b"{}",
    "pytorch_model.bin": b"pickle",
    "README.md": b"# A model",
}


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    with standing_in(tmp_path, monkeypatch) as found:
        yield found


def line_of(name: str, revision: str | None = None) -> str:
    """What a user reads of `name`; nothing may have been fetched."""
    with pytest.raises(ModelError) as caught:
        hub.check(name, revision)
    assert "\n" not in str(caught.value)
    assert TOKEN not in str(caught.value)
    return str(caught.value)


def test_an_open_model_is_described_and_nothing_is_fetched(stand_in: HubStandIn) -> None:
    stand_in.repositories["org/open"] = Repository(dict(WHOLE), parameters=123_000_000)
    said = hub.check("org/open")
    assert (said.commit, said.parameters, said.licence) == (COMMIT, 123_000_000, "apache-2.0")
    assert said.bytes == len(b"{}weights{}")  # neither the pickle file nor the page
    assert not said.gated
    assert parameters("org/open") == expected_parameters("org/open") == 123_000_000
    assert folder_config("org/open") is None
    assert stand_in.asked == ["GET /api/models/org/open"]  # once, however often it is asked about
    assert hub.cached("org/open") is None


def test_what_was_fetched_needs_no_hub_any_more(
    stand_in: HubStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    stand_in.repositories["org/open"] = Repository(dict(WHOLE))
    folder = hub_snapshot(parse("org/open"))
    assert sorted(one.name for one in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    asked = len(stand_in.asked)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    forget()
    assert hub.cached("org/open") == folder == hub_snapshot(parse("org/open"))
    assert digest(parse("org/open")) == COMMIT
    assert folder_config("org/open") == {}
    assert len(stand_in.asked) == asked


def test_no_way_to_the_hub(stand_in: HubStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    stand_in.reachable = False
    line = line_of("org/open")
    assert line.startswith(
        "org/open: not cached here, and the hub cannot be reached (ConnectError)"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    forget()
    assert "(HF_HUB_OFFLINE is set)" in line_of("google/gemma-7b-it")
    assert "Its terms are accepted at https://huggingface.co/google/gemma-7b-it." in line_of(
        "google/gemma-7b-it"
    )
    with pytest.raises(UnavailableError):
        digest(parse("org/open"))
    assert parameters("org/open") is None
    assert expected_parameters("google/gemma-7b-it") == 8_537_680_896
    config = folder_config("google/gemma-7b-it")
    assert config is not None
    assert config["num_hidden_layers"] == 28


def test_a_gated_model(stand_in: HubStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in.repositories["org/gated"] = gated = Repository(dict(WHOLE), gated=True)
    line = line_of("org/gated")
    assert line == (
        "org/gated is gated, and there is no login here. Accept its terms at "
        "https://huggingface.co/org/gated, then log in with `hf auth login`, or set HF_TOKEN."
    )
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    forget()
    line = line_of("org/gated")
    assert "your login has not been granted access" in line
    assert "https://huggingface.co/org/gated" in line
    gated.granted = (TOKEN,)
    forget()
    assert hub.check("org/gated").gated
    assert hub_snapshot(parse("org/gated")).name == COMMIT


def test_the_login_of_hf_auth_login_is_used(stand_in: HubStandIn, tmp_path: Path) -> None:
    stand_in.repositories["org/gated"] = Repository(dict(WHOLE), gated=True, granted=(TOKEN,))
    (tmp_path / "token").write_text(TOKEN)
    assert hub.check("org/gated").gated
    assert hub.access() == hub.Access(True, "", "hf auth login")


def test_a_login_that_the_hub_does_not_know(
    stand_in: HubStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in.repositories["org/open"] = Repository(dict(WHOLE))
    stand_in.known_tokens = ()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert "the hub does not accept the login (from HF_TOKEN)" in line_of("org/open")


def test_unknown_names_and_revisions_are_mistakes_and_not_obstacles(stand_in: HubStandIn) -> None:
    stand_in.repositories["org/open"] = Repository(dict(WHOLE))
    for name, revision, words in (
        ("org/opne", None, "The hub knows no model org/opne."),
        ("org/open", "v9", "org/open has no revision 'v9'."),
        ("org/two--dashes", None, "The hub knows no model"),
    ):
        assert words in line_of(name, revision)
        with pytest.raises(ModelError) as caught:
            hub.check(name, revision)
        assert not isinstance(caught.value, UnavailableError)
    assert hub.check("org/open", "main").commit == COMMIT


def test_a_hub_that_fails_is_not_reached(stand_in: HubStandIn) -> None:
    stand_in.repositories["org/open"] = Repository(dict(WHOLE), broken=503)
    assert "cannot be reached (it answers with status 503)" in line_of("org/open")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (("pytorch_model.bin",), "pickle files alone (*.bin)"),
        (("model-q4_k_m.gguf",), "holds GGUF files and no safetensors"),
        ((), "holds no weights"),
    ],
)
def test_weights_that_cannot_be_loaded(
    stand_in: HubStandIn, files: tuple[str, ...], words: str
) -> None:
    content = {"config.json": b"{}"} | dict.fromkeys(files, b"weights")
    stand_in.repositories["org/other"] = Repository(content)
    assert words in line_of("org/other")
    with pytest.raises(ModelError):
        hub_snapshot(parse("org/other"))
    assert not any("/resolve/" in one for one in stand_in.asked)


def test_a_partial_download_is_not_taken_for_the_model(
    stand_in: HubStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = {"weight_map": {"a": shards[0], "b": shards[1]}}
    files = {"config.json": b"{}", "model.safetensors.index.json": json.dumps(index).encode()}
    stand_in.repositories["org/shards"] = Repository(files | dict.fromkeys(shards, b"weights"))
    folder = hub_snapshot(parse("org/shards"))
    (folder / shards[1]).unlink()
    assert hub.cached("org/shards") is None
    trees = folder.parent.parent / "trees"
    for file in trees.glob("*"):  # as older versions of the hub's library leave it
        file.unlink()
    assert hub.cached("org/shards") is None
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    forget()
    assert "org/shards: not whole in the hub's cache" in line_of("org/shards")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    forget()
    assert hub_snapshot(parse("org/shards")) == folder
    assert (folder / shards[1]).read_bytes() == b"weights"


def test_a_full_disk_is_not_a_hub_that_is_out_of_reach(
    stand_in: HubStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    real = huggingface_hub.snapshot_download

    def full(*arguments: Any, **named: Any) -> str:
        if named.get("local_files_only"):
            return str(real(*arguments, **named))
        raise OSError(errno.ENOSPC, "No space left on device")

    stand_in.repositories["org/open"] = Repository(dict(WHOLE))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    with pytest.raises(StoreError, match=r"Cannot download org/open into .*No space left"):
        hub_snapshot(parse("org/open"))


def test_access_says_why_and_no_token(
    stand_in: HubStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hub.access() == hub.Access(True, "", "")
    stand_in.reachable = False
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert hub.access() == hub.Access(False, "ConnectError", "HF_TOKEN")
