"""Whether an answer declines: one judgement for drift and for the comparison of versions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from potstill.serve.answering import Work
from potstill.serve.qa import SpanWork


@pytest.fixture
def parts() -> tuple[Any, ...]:
    gateway = SimpleNamespace(
        engine=SimpleNamespace(context_tokens=None),
        lanes=SimpleNamespace(canary=None, assign=lambda unit: "tiny"),
        declines=lambda answer: answer == "I do not know.",
    )
    turn = [{"role": "user", "content": "How many litres?"}]
    return gateway, SimpleNamespace(id="k"), "tiny", "", turn


def test_a_student_that_writes_declines_in_words(parts: tuple[Any, ...]) -> None:
    gateway, key, model, path, turn = parts
    for said, declined in (("I do not know.", True), ("12 litres", False), ("", False)):
        work = Work(gateway, key, model, path, "text_completion", {"max_tokens": 9}, turn)
        work.text.append(said)
        assert work.declined is declined


def test_a_student_that_marks_answers_declines_by_marking_none(parts: tuple[Any, ...]) -> None:
    gateway, key, model, path, turn = parts
    for said, declined in (("I do not know.", True), ("12 litres", False), ("", True)):
        work = SpanWork(
            gateway, key, model, path, "qa.answer", {"max_tokens": 0}, turn, texts=[], chunks=[]
        )
        work.text.append(said)
        assert work.declined is declined
