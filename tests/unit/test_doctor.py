"""The doctor says how this machine stands to the model hub, and never a login's value."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_stand_in import TOKEN, HubStandIn, standing_in

from potstill.core.extras import APART, EXTRAS
from potstill.doctor import PURPOSES, Finding, examine


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    with standing_in(tmp_path, monkeypatch) as found:
        yield found


def test_every_extra_has_a_purpose() -> None:
    assert set(PURPOSES) == set(EXTRAS)


def test_what_all_leaves_out_is_noted_and_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))
    declared = project["project"]["optional-dependencies"]["all"][0]
    in_all = set(declared.partition("[")[2].rstrip("]").split(","))
    assert set(EXTRAS) - in_all == APART
    monkeypatch.setattr("potstill.core.extras.installed_version", lambda name: None)
    states = {one.name: one.state for one in examine(tmp_path)}
    assert {extra: states[f"[{extra}]"] for extra in EXTRAS} == {
        extra: "note" if extra in APART else "missing" for extra in EXTRAS
    }


def hub_findings(project: Path) -> tuple[Finding, Finding]:
    found = {one.name: one for one in examine(project)}
    assert TOKEN not in str(found)
    return found["model hub"], found["hub login"]


def test_a_hub_that_answers_and_no_login(stand_in: HubStandIn, tmp_path: Path) -> None:
    hub, login = hub_findings(tmp_path)
    assert (hub.state, hub.text) == ("ok", "can be reached")
    assert login.state == "note"
    assert "hf auth login" in login.text


def test_a_login_and_no_hub(
    stand_in: HubStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    stand_in.reachable = False
    hub, login = hub_findings(tmp_path)
    assert (hub.state, login.text) == ("note", "there is one (from HF_TOKEN)")
    assert "ConnectError" in hub.text
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in hub_findings(tmp_path)[0].text
