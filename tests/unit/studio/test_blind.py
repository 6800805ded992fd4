"""A vote is blind: nothing that reaches the browser before it tells who is A and who is B."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from studio_runs import browser, make_run

from potstill.evaluate.judge import pair_summary
from potstill.evaluate.votes import read_votes
from potstill.studio.blind_pairs import MOST_OPEN, Pairs
from potstill.studio.disagree_page import coloured, shade_of
from potstill.studio.session import Studio

SMALL, LARGE = "small-q4.gguf", "student-f16.gguf"
QUESTION = "Who grades it?"


@pytest.fixture
def opened(tmp_path: Path) -> tuple[TestClient, Studio, Path]:
    folder = make_run(tmp_path)
    (folder / "export").mkdir()
    for size, name in enumerate((SMALL, LARGE), 1):
        (folder / "export" / name).write_bytes(b"x" * size)
    client, studio = browser(tmp_path)

    async def answer(gguf: Path, asked: Any) -> AsyncIterator[dict[str, Any]]:
        yield {"piece": f"said by {gguf.stat().st_size}"}
        yield {"tokens": 3, "wait": 0.1, "rate": 99.0, "looped": False, "cut": False}

    studio.player.answer = answer  # type: ignore[method-assign]
    return client, studio, folder


def events(client: TestClient, **body: Any) -> list[dict[str, Any]]:
    answer = client.post("/runs/made/chat", json={"question": QUESTION, "passages": False, **body})
    assert answer.status_code == 200, answer.text
    return [json.loads(one[6:]) for one in answer.text.split("\n\n") if one]


def begin(client: TestClient) -> str:
    said = client.post("/runs/made/blind", json={"question": QUESTION, "models": [LARGE, SMALL]})
    return str(said.json()["pair"])


def test_votes_are_kept_as_the_judge_keeps_them_and_names_told_after(
    opened: tuple[TestClient, Studio, Path],
) -> None:
    client, studio, folder = opened
    orders = set()
    for _ in range(24):
        pair = begin(client)
        said = {label: events(client, model=label, pair=pair) for label in "AB"}
        told = json.dumps(said)
        assert SMALL not in told
        assert LARGE not in told
        assert "99" not in told  # how fast it was
        answer = client.post("/runs/made/vote", json={"pair": pair, "winner": "A"}).json()
        by_size = {"said by 1": SMALL, "said by 2": LARGE}
        names = [by_size[said[label][0]["piece"]] for label in "AB"]
        assert answer["names"] == names
        orders.add(tuple(names))
        vote = read_votes(folder / "judge" / "human-votes.jsonl")[-1]
        assert (vote.winner, vote.models) == (names[0], (SMALL, LARGE))
        assert vote.swapped == (names[0] == LARGE)
        assert vote.judge.startswith("human:")
    assert orders == {(SMALL, LARGE), (LARGE, SMALL)}  # by chance wrong once in eight million
    votes = read_votes(folder / "judge" / "human-votes.jsonl")
    assert len(votes) == 24
    assert len({one.row for one in votes}) == 1  # one question: A was chosen in both orders
    two = [votes[0], votes[0].model_copy(update={"row": "other"})]
    assert pair_summary(two, (SMALL, LARGE))["wins"][votes[0].winner] == 2
    assert studio.pairs._open == {}


def test_a_vote_needs_two_models_both_answers_and_counts_once(
    opened: tuple[TestClient, Studio, Path],
) -> None:
    client, _, folder = opened
    for models in ([SMALL, SMALL], [SMALL, "nobody"], [SMALL, "../x"]):
        said = client.post("/runs/made/blind", json={"question": "?", "models": models})
        assert "needs two models" in said.text
    pair = begin(client)
    vote = {"pair": pair, "winner": "tie"}
    events(client, model="A", pair=pair)
    assert "Both have to answer" in client.post("/runs/made/vote", json=vote).text
    wrong = {"question": "?", "pair": pair, "model": SMALL}
    assert "between A and B" in client.post("/runs/made/chat", json=wrong).text
    events(client, model="B", pair=pair)
    assert client.post("/runs/made/vote", json={**vote, "winner": "C"}).status_code == 422
    assert client.post("/runs/made/vote", json=vote).json()["said"] == "Your vote is kept."
    assert "This vote is over" in client.post("/runs/made/vote", json=vote).text
    assert len(read_votes(folder / "judge" / "human-votes.jsonl")) == 1


def test_old_pairs_are_forgotten() -> None:
    pairs = Pairs()
    made = [pairs.begin("r", "q", ("a", "b")) for _ in range(MOST_OPEN + 3)]
    assert len(pairs._open) == MOST_OPEN
    assert made[-1] in pairs._open


def test_shades_begin_where_they_say_and_texts_stay_text() -> None:
    assert [shade_of(kl) for kl in (0, 0.049, 0.05, 0.2, 0.5, 1.0, 9)] == [0, 0, 1, 2, 3, 4, 4]
    token = {"text": "<b>nine", "kl": 0.6, "agree": False, "instead": '"><i>', "probability": 0.25}
    token |= {"special": False}
    html = coloured([token, token | {"kl": 0.0, "agree": True}])
    assert (
        'class="kl-3 other" title="0.600 nats; the teacher would say: &#34;&gt;&lt;i&gt;"' in html
    )
    assert "<b>" not in html
    assert "<i>" not in html
    assert "0.300 nats a token, the same first choice at 1 of 2" in html
    assert coloured([])


def test_the_signs_of_a_template_are_called_the_end() -> None:
    word = {"text": "nine", "kl": 0.9, "agree": False, "instead": "<|end|>", "special": False}
    last = {"text": "<|end|>", "kl": 0.0, "agree": True, "instead": "<|end|>", "special": True}
    html = coloured([word | {"probability": 0.5}, last | {"probability": 0.5}])
    assert "&lt;|end|" not in html
    assert ">(end)</span>" in html
    assert "the teacher would say: (end)" in html
    assert "<td>(end)</td>" in html


def test_what_stands_in_the_way_of_colours_is_said(
    opened: tuple[TestClient, Studio, Path],
) -> None:
    client, _, _ = opened
    body = {"question": QUESTION, "answer": "--help", "passages": False}
    said = client.post("/runs/made/disagree", json=body)
    assert said.status_code == 400
    assert "has not finished the stage export" in said.text
    assert client.post("/runs/made/disagree", json=body | {"answer": ""}).status_code == 422
