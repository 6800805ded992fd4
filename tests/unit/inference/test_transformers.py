"""The PyTorch adapter over a two-layer model: batches, seeds, padding, JSON, limits."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from potstill.inference.base import Request
from potstill.inference.transformers import TransformersModel, _cut, _SeededDraw
from potstill.models.chat import encode_example
from potstill.records import Turn


@pytest.fixture(scope="module")
def folder(make_student: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_student(tmp_path_factory.mktemp("tiny")))


def opened(folder: str, parallel: int = 3) -> TransformersModel:
    return TransformersModel(folder, threads=1, parallel=parallel, context_tokens=200)


def request(text: str, **more: Any) -> Request:
    return Request((Turn(role="user", content=text),), **{"max_tokens": 6, **more})


def test_left_padding_changes_no_greedy_reply(folder: str) -> None:
    requests = [request("a"), request("a much longer question than that"), request("mid size")]
    together = dict(opened(folder, 3).complete(requests))
    alone = dict(opened(folder, 1).complete(requests))
    assert [together[n].text for n in range(3)] == [alone[n].text for n in range(3)]


def test_a_greedy_reply_equals_a_plain_loop_over_the_model(folder: str) -> None:
    model = opened(folder)
    ((_, reply),) = model.complete([request("abc")])
    turns = [Turn(role="user", content="abc"), Turn(role="assistant", content="x")]
    ids = encode_example(model._tokenizer, turns, 10_000).prompt
    start = len(ids)
    for _ in range(6):
        best = int(model._model(torch.tensor([ids])).logits[0, -1].argmax())
        if best in model._eos:
            break
        ids.append(best)
    assert reply.text == model._tokenizer.decode(ids[start:], skip_special_tokens=True)
    assert reply.prompt_tokens == start


def test_draws_depend_on_the_requests_own_seed(folder: str) -> None:
    requests = [request("abc", temperature=1.5, seed=seed) for seed in (1, 2, 1, 3)]
    found = dict(opened(folder, 4).complete(requests))
    assert found[0].text == found[2].text
    assert len({found[n].text for n in range(4)}) > 1


def test_seeded_draws_follow_the_softmax() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0])
    asked = [request("", temperature=2.0, seed=seed) for seed in range(4000)]
    drawn = _SeededDraw(asked)(torch.zeros(0), logits.repeat(4000, 1)).argmax(-1)
    share = drawn.bincount(minlength=3) / 4000
    weights = [math.exp(x / 2) for x in (0, 1, 2)]
    assert share.tolist() == pytest.approx([w / sum(weights) for w in weights], abs=0.03)


def test_a_prompt_that_does_not_fit_is_refused_alone(folder: str) -> None:
    found = dict(opened(folder).complete([request("x" * 300), request("ok")]))
    assert found[0].finish_reason == "error"
    assert "exceeds 200" in found[0].text
    assert found[1].finish_reason in {"stop", "length"}


def test_streamed_pieces_are_the_reply_and_may_be_abandoned(folder: str) -> None:
    model = opened(folder)
    ((_, reply),) = model.complete([request("abc")])
    assert "".join(model.stream(request("abc"))) == reply.text
    pieces = model.stream(request("abc", max_tokens=100))
    next(pieces)
    pieces.close()


@pytest.mark.parametrize(
    ("text", "schema", "stop", "expected"),
    [
        ('Sure: {"a": "}"} and more', {}, (), ('{"a": "}"}', True)),
        ('{"a": ', {}, (), ('{"a": ', False)),
        ("no json", {}, (), ("no json", False)),
        ("one END two", None, ("END",), ("one ", True)),
        ("one two", None, (), ("one two", False)),
    ],
)
def test_json_and_stop_words_end_a_reply(
    text: str, schema: dict[str, Any] | None, stop: tuple[str, ...], expected: tuple[str, bool]
) -> None:
    assert _cut(text, request("", schema=schema, stop=stop)) == expected


def test_tokens_come_from_the_models_tokenizer(folder: str) -> None:
    model = opened(folder)
    assert model.count_tokens("1250") == 4
    assert model.token_ids("12", special=True) == model.token_ids("12")
    model.close()
