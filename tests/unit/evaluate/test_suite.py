"""The harness behind a stand-in of its own interface, and what is said where it is missing."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from potstill.errors import InputError, MissingExtraError, UsageError
from potstill.evaluate.suite import parse_suite, run_suite

FOLDERS = {"teacher": Path("/t"), "distilled": Path("/s")}


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A module that answers as lm-eval does; the calls that it got."""
    calls: list[dict[str, Any]] = []
    module = ModuleType("lm_eval")

    def simple_evaluate(**arguments: Any) -> dict[str, Any]:
        calls.append(arguments)
        (task,) = arguments["tasks"]
        if task == "unknown":
            raise KeyError("unknown")
        figures = {
            "alias": task,
            "sample_len": 17,
            "acc,none": 0.5 if arguments["model_args"]["pretrained"] == "/t" else 0.25,
            "acc_stderr,none": 0.05,
            "exact_match,strict-match": 0.125,
            "exact_match_stderr,strict-match": "N/A",
        }
        return {"results": {} if task == "empty" else {task: figures}}

    module.simple_evaluate = simple_evaluate  # type: ignore[attr-defined]
    module.__spec__ = ModuleSpec("lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval", module)
    return calls


def test_teacher_and_student_are_run_on_the_same_task(harness: list[dict[str, Any]]) -> None:
    found = run_suite("arc_easy", FOLDERS, limit=20)
    assert found["models"]["teacher"]["acc"] == {"value": 0.5, "stderr": 0.05}
    assert found["models"]["distilled"] == {
        "acc": {"value": 0.25, "stderr": 0.05},
        "exact_match (strict-match)": {"value": 0.125, "stderr": None},
    }
    assert found["rows"] == 17
    assert [call["model_args"]["pretrained"] for call in harness] == ["/t", "/s"]
    assert {call["limit"] for call in harness} == {20}
    assert {call["device"] for call in harness} == {"cpu"}


def test_a_task_that_it_does_not_know_is_one_clear_error(harness: list[dict[str, Any]]) -> None:
    with pytest.raises(InputError, match="cannot run the task unknown"):
        run_suite("unknown", FOLDERS)
    with pytest.raises(InputError, match="no figure"):
        run_suite("empty", FOLDERS)


def test_without_the_harness_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingExtraError, match="pip install lm_eval"):
        run_suite("arc_easy", FOLDERS)


@pytest.mark.parametrize("text", ["arc_easy", "lm-eval:", "lm-eval", "helm:x"])
def test_a_suite_is_named_with_its_harness(text: str) -> None:
    with pytest.raises(UsageError, match="no suite"):
        parse_suite(text)
    assert parse_suite("lm-eval:arc_easy") == "arc_easy"
