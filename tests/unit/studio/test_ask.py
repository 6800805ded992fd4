"""A student that marks answers is asked on its page, by the command that does it."""

from __future__ import annotations

import asyncio
import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from studio_runs import PASSAGE, browser, make_run, make_span_run

from potstill.errors import PotstillError
from potstill.studio import commands
from potstill.studio.ask_page import answered

TEXT = "The kelp is graded by Tove. Nobody <b>may</b> enter."
FOUND = {
    "answer": "Tove", "score": 0.834, "start": 22, "end": 26, "no_answer": 0.02,
    "source": "notes.md", "passage": TEXT,
}  # fmt: skip


def test_an_answer_is_marked_in_its_passage_and_texts_stay_text() -> None:
    shown = answered(FOUND)
    assert "<mark>Tove</mark>" in shown
    assert "83% probable · notes.md" in shown
    assert "<b>" not in shown
    nothing = answered(FOUND | {"answer": "", "start": 0, "end": 0, "score": 0.7})
    assert "No answer there." in nothing
    assert "<mark>" not in nothing


def test_the_question_goes_to_the_command_and_a_text_to_its_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path, task="spans", report={"models": {}})
    client, _ = browser(tmp_path)
    asked: list[tuple[Sequence[str], str]] = []

    async def said(words: Sequence[str], what: str, given: str) -> dict[str, Any]:
        asked.append((words, given))
        return FOUND

    monkeypatch.setattr(commands, "_said", said)
    page = client.get("/runs/made/chat").text
    assert 'data-to="/runs/made/ask"' in page
    assert "/static/marks.js" in page
    shown = client.post("/runs/made/ask", json={"question": "--help"})
    assert "<mark>Tove</mark>" in shown.text
    client.post("/runs/made/ask", json={"question": "Who?", "text": TEXT})
    assert [list(words[-2:]) for words, _ in asked] == [["--", "--help"], ["--", "Who?"]]
    assert "--passage" not in asked[0][0]
    assert asked[0][1] == ""
    assert list(asked[1][0][5:7]) == ["--passage", "-"]
    assert asked[1][1] == TEXT
    assert client.post("/runs/made/ask", json={"question": ""}).status_code == 422


def test_a_student_is_asked_about_the_documents_and_about_a_text(tmp_path: Path) -> None:
    """By the command itself, with a model that was never taught: whatever it marks stands there."""
    make_span_run(tmp_path)
    client, _ = browser(tmp_path)
    for text in ("", "the keeper notes the time in the log"):
        shown = client.post(
            "/runs/made/ask", json={"question": "who graded the kelp?", "text": text}
        )
        assert shown.status_code == 200, shown.text
        if "No answer there." in shown.text:
            continue
        said = re.search(r'<p class="said">(.*)</p>', shown.text)
        assert said
        assert html.unescape(said[1]).lower() in (text or PASSAGE).lower()
        assert f"<mark>{said[1]}</mark>" in shown.text
        assert ("notes.md" in shown.text) is not bool(text)


def test_what_stands_in_the_way_is_said_in_the_commands_words(tmp_path: Path) -> None:
    make_run(tmp_path)
    client, _ = browser(tmp_path)
    said = client.post("/runs/made/ask", json={"question": "Who?"})
    assert said.status_code == 400
    assert "The student of made writes its answers." in said.text


def test_a_command_that_breaks_is_no_traceback_in_the_page() -> None:
    with pytest.raises(PotstillError, match="The question failed"):
        asyncio.run(commands._said(["no-such-command"], "The question", ""))
