"""What the chat page is told of an answer: its pieces, and at the end how it came about."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from potstill.studio.play import Asked, Player
from potstill.studio.play_page import _figures

ASKED = Asked("Who?", 0.0, 1.0, 2, 0)


def events(finish: str) -> list[dict[str, Any]]:
    """As an engine sends them."""
    words = [
        {"choices": [{"delta": {"content": one}, "finish_reason": None}]} for one in ("a", "b")
    ]
    return [
        {"choices": [{"delta": {"role": "assistant"}}]},
        *words,
        {"choices": [{"delta": {}, "finish_reason": finish}]},
        {"choices": [], "usage": {"completion_tokens": 2}},
    ]


@pytest.mark.parametrize(("finish", "cut"), [("length", True), ("stop", False)])
def test_an_answer_that_was_cut_off_is_called_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, finish: str, cut: bool
) -> None:
    async def stream(*_: Any) -> AsyncIterator[dict[str, Any]]:
        for one in events(finish):
            yield one

    async def engine(*_: Any) -> Any:
        return SimpleNamespace(upstream=SimpleNamespace(events=stream))

    async def told() -> list[dict[str, Any]]:
        return [one async for one in Player().answer(tmp_path / "a.gguf", ASKED)]

    monkeypatch.setattr(Player, "_engine", engine)
    *pieces, last = asyncio.run(told())
    assert [one["piece"] for one in pieces] == ["a", "b"]
    assert last["tokens"] == 2
    assert last["cut"] is cut
    assert ("cut off: as long as was allowed" in _figures(last)) is cut
