"""vLLM as a process on a leash: started, asked, ended, and what is said when it fails.

A stand-in answers as `vllm serve` does; where POTSTILL_VLLM names a real one it is asked too, in
tests/e2e.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import vllm_stand_in
from hypothesis import given
from hypothesis import strategies as st

from potstill.core.processes import GONE, mark_of
from potstill.errors import MissingExtraError, ModelError, TeacherError
from potstill.inference import vllm
from potstill.inference.base import Request
from potstill.inference.fake import FakeModel
from potstill.inference.open import engine_identity, open_model, resolve_backend
from potstill.inference.vllm import least_devices, reason_in
from potstill.records import Turn

SCHEMA = {"type": "object", "properties": {"answer": {"type": "string"}}}


def requests(count: int) -> list[Request]:
    return [
        Request((Turn(role="user", content=f"The lamp {n} burns."),), seed=n, schema=SCHEMA)
        for n in range(count)
    ]


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POTSTILL_VLLM", str(vllm_stand_in.command_in(tmp_path)))
    monkeypatch.setenv("STAND_IN_NOTES", str(tmp_path / "notes.json"))
    return tmp_path / "notes.json"


@pytest.fixture
def model(tiny_folder: Path) -> str:
    return str(tiny_folder)


def test_it_answers_as_any_engine_does(stand_in: Path, model: str) -> None:
    assert resolve_backend(model, "vllm") == "vllm"
    asked = requests(20)
    with open_model(model, "vllm", threads=2, parallel=4, context_tokens=512) as opened:
        replies = dict(opened.complete(asked))
        pieces = list(opened.stream(asked[0]))
        assert opened.count_tokens("Open the valve.") == len(opened.token_ids("Open the valve."))
    expected = dict(FakeModel().complete(asked))
    assert {n: reply.text for n, reply in replies.items()} == {
        n: reply.text for n, reply in expected.items()
    }
    assert "".join(pieces)


def test_it_is_started_for_this_process_alone_and_ends_with_it(
    stand_in: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-for-vllm")
    with open_model(model, "vllm", threads=2, parallel=4, context_tokens=512):
        seen = json.loads(stand_in.read_text().splitlines()[-1])
        told = dict(zip(seen["arguments"][2::2], seen["arguments"][3::2], strict=False))
        socket = Path(told["--uds"])
        assert socket.is_socket()
        assert socket.parent.stat().st_mode & 0o077 == 0
        assert mark_of(seen["process"]) != GONE
    assert told["--max-model-len"] == "512"
    assert told["--max-num-seqs"] == "4"
    assert told["--load-format"] == "safetensors"
    assert told["--generation-config"] == "vllm"
    assert "--trust-remote-code" not in seen["arguments"]
    assert "--host" not in seen["arguments"]
    assert "OPENAI_API_KEY" not in seen["environment"]
    assert seen["environment"]["VLLM_NO_USAGE_STATS"] == "1"
    assert seen["environment"]["OMP_NUM_THREADS"] == "2"
    assert mark_of(seen["process"]) == GONE
    assert not socket.parent.exists()


def test_why_it_does_not_start_is_its_own_reason(
    stand_in: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN", "fails")
    with (
        pytest.raises(ModelError, match=r"ended with exit code 1.*ValueError: No memory for one"),
        open_model(model, "vllm"),
    ):
        pass


def test_a_death_in_the_middle_ends_the_call_and_loses_no_request(
    stand_in: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN", "dies")
    replies: dict[int, Any] = {}
    with (
        pytest.raises(ModelError, match=r"exit code 137.*MemoryError: the card is full"),
        open_model(model, "vllm", parallel=1) as opened,
    ):
        replies.update(opened.complete(requests(8)))
    assert sorted(replies) == [0, 1, 2]  # the others have no reply, not even one that says why
    assert all(reply.finish_reason == "stop" for reply in replies.values())


def test_failures_while_it_runs_have_its_logs_reason(
    stand_in: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN", "fails later")
    monkeypatch.setattr(vllm, "DEATH_SECONDS", 0.2)
    with (
        pytest.raises(
            TeacherError, match=r"RuntimeError: no grammar for this .*HTTP 500"
        ) as caught,
        open_model(model, "vllm", parallel=1) as opened,
    ):
        list(opened.complete(requests(8)))
    assert "goes on from there" in caught.value.hint


def test_a_request_that_it_refuses_is_refused_alone(
    stand_in: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN", "refuses one")
    with open_model(model, "vllm", parallel=1) as opened:
        replies = dict(opened.complete(requests(4)))
    assert [replies[n].finish_reason for n in range(4)] == ["stop", "error", "stop", "stop"]
    assert "longer than 64 tokens" in replies[1].text


def test_its_version_is_part_of_what_replies_depend_on(stand_in: Path, model: str) -> None:
    assert engine_identity(model, "vllm").endswith(f" vllm {vllm_stand_in.VERSION}")


def test_a_command_that_is_not_there_is_told_at_once(
    model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("POTSTILL_VLLM", str(tmp_path / "nowhere"))
    with pytest.raises(MissingExtraError, match="nowhere, which is no command"):
        engine_identity(model, "vllm")
    monkeypatch.delenv("POTSTILL_VLLM")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingExtraError, match="pip install vllm"):
        engine_identity(model, "vllm")


@given(
    weights=st.floats(0, 1e13),
    memory=st.floats(1e9, 2e11),
    seen=st.integers(min_value=1, max_value=64),
)
def test_a_model_is_divided_among_no_more_devices_than_it_needs(
    weights: float, memory: float, seen: int
) -> None:
    devices = least_devices(weights, memory, seen)
    assert devices & (devices - 1) == 0
    assert devices <= seen
    holds = weights <= 0.7 * devices * memory
    assert holds or 2 * devices > seen
    assert devices == 1 or weights > 0.7 * (devices / 2) * memory


def test_a_teacher_of_140_gigabytes_is_divided_among_four_cards_of_80() -> None:
    assert least_devices(140e9, 80e9, 8) == 4
    assert least_devices(15e9, 80e9, 8) == 1
    assert least_devices(140e9, 24e9, 4) == 4  # it will say itself that this is too little


NO_TORCH = "ModuleNotFoundError: No module named 'torch'"
NO_OPTION = "vllm: error: unrecognized arguments: --uds"
NO_ENGINE = "RuntimeError: Engine core initialization failed."


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("", "it said nothing"),
        ("Killed\n", "Killed"),
        (f"usage: vllm serve\n{NO_OPTION}\n", NO_OPTION),
        (f"Traceback\n  import torch\n{NO_TORCH}\n", NO_TORCH),
        (f"{NO_ENGINE}\n", NO_ENGINE),
        (vllm_stand_in.FAILED, "ValueError: No memory for one request."),
    ],
)
def test_the_reason_is_the_line_that_says_most(log: str, reason: str) -> None:
    assert reason_in(log) == reason
