"""Keys: what the file holds, whom it lets in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.errors import StoreError, UsageError
from potstill.serve import auth
from potstill.serve.auth import KeyFile
from potstill.serve.limits import KeyLimits
from potstill.serve.problems import ApiError


def test_a_key_is_known_by_what_the_file_cannot_give_back(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    made = keys.add("alice", ("chat",), KeyLimits(requests_per_minute=5))
    found = KeyFile(tmp_path / "keys.json").check(made, "chat")
    assert (found.name, found.limits.requests_per_minute) == ("alice", 5)
    text = keys.path.read_text()
    assert made.rsplit("_", 1)[1] not in text
    assert made not in text
    other = keys.add("bob", ("chat",), KeyLimits())
    first, second = json.loads(keys.path.read_text())
    assert first["salt"] != second["salt"]
    mixed = made[: made.rindex("_")] + other[other.rindex("_") :]
    with pytest.raises(ApiError):
        keys.check(mixed, "chat")


def test_a_revoked_key_is_as_an_unknown_one(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    made = keys.add("alice", ("chat",), KeyLimits())
    KeyFile(keys.path).revoke("alice")
    said = set()
    for presented in (made, "", "nonsense", made.replace("pst", "xyz"), made * 50):
        with pytest.raises(ApiError) as caught:
            keys.check(presented, "chat")
        assert caught.value.status == 401
        said.add(caught.value.message)
    assert len(said) == 1
    again = keys.add("alice", ("chat",), KeyLimits())
    assert keys.check(again, "chat").name == "alice"


def test_a_key_without_the_scope_is_forbidden(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    made = keys.add("alice", ("feedback",), KeyLimits())
    with pytest.raises(ApiError) as caught:
        keys.check(made, "chat")
    assert caught.value.status == 403


def test_every_check_hashes_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The work of a check is the same for all; what takes time in it is the hash."""
    keys = KeyFile(tmp_path / "keys.json")
    made = keys.add("alice", ("chat",), KeyLimits())
    gone = keys.add("gone", ("chat",), KeyLimits())
    keys.revoke("gone")
    counted: list[int] = []
    real = auth._digest
    monkeypatch.setattr(auth, "_digest", lambda salt, s: counted.append(len(s)) or real(salt, s))
    presented = (made, gone, made[:-1] + "!", f"pst_{'f' * 12}_{'A' * 43}", "", "x" * 10**6)
    for one in presented:
        try:
            keys.check(one, "chat")
        except ApiError:
            assert one != made
    assert len(counted) == len(presented)
    assert max(counted) <= auth.LONGEST


def test_names_and_scopes_are_checked(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    keys.add("alice", ("chat",), KeyLimits())
    for name, scopes in (
        ("alice", ("chat",)),
        ("", ("chat",)),
        ("a\nb", ("chat",)),
        ("bob", ("root",)),
        ("bob", ()),
    ):
        with pytest.raises(UsageError):
            keys.add(name, scopes, KeyLimits())
    with pytest.raises(UsageError):
        keys.revoke("bob")
    assert [one.name for one in keys.listed()] == ["alice"]


@pytest.mark.parametrize("text", ["{", "{}", "[1]", '[{"id": "a"}]'])
def test_a_damaged_file_lets_nobody_in(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(text)
    with pytest.raises(StoreError):
        KeyFile(path).check("x", "chat")


@given(st.text(max_size=300))
def test_no_text_is_a_key(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "some-keys.json"
    keys = KeyFile(path)
    if not path.exists():
        keys.add("alice", ("chat",), KeyLimits())
    with pytest.raises(ApiError):
        keys.check(text, "chat")
