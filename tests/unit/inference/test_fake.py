"""The model without weights follows the schema and depends on the request alone."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from potstill.inference.base import Request
from potstill.inference.fake import FakeModel
from potstill.records import Turn


def ask(schema: dict[str, Any] | None = None, seed: int = 0, **more: Any) -> str:
    request = Request(
        (Turn(role="user", content="The lamp burns 46 litres."),), schema=schema, seed=seed, **more
    )
    ((position, reply),) = FakeModel().complete([request])
    assert position == 0
    return reply.text


@pytest.mark.parametrize(
    ("schema", "holds"),
    [
        ({"enum": ["a", "b"]}, lambda v: v in {"a", "b"}),
        ({"const": 7}, lambda v: v == 7),
        ({"type": "string", "maxLength": 4}, lambda v: 0 < len(v) <= 4),
        ({"type": "string", "minLength": 60}, lambda v: len(v) >= 60),
        ({"type": "integer", "minimum": 3}, lambda v: v == 3),
        ({"type": "boolean"}, lambda v: isinstance(v, bool)),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 2}, lambda v: len(v) == 2),
        (
            {"type": "object", "properties": {"z": {"const": 1}, "a": {"const": 2}}},
            lambda v: list(v) == ["z", "a"],
        ),
    ],
)
def test_replies_follow_the_schema(schema: dict[str, Any], holds: Any) -> None:
    assert holds(json.loads(ask(schema)))


def test_a_question_fits_its_pattern_and_its_answer_the_enum() -> None:
    pattern = r"^(What|Who) ((lamp|burns|litres)( |\?))[a-c]{2}[^x-z]\.\?$"
    fields = {"question": {"type": "string", "pattern": pattern}, "answer": {"enum": ["46 litres"]}}
    for seed in range(20):
        value = json.loads(ask({"type": "object", "properties": fields}, seed))
        assert re.fullmatch(pattern, value["question"])
        assert value["answer"] == "46 litres"


def test_the_same_request_gets_the_same_reply_and_another_seed_another() -> None:
    schema = {"type": "object", "properties": {"question": {}, "answer": {}}}
    assert ask(schema, 3) == ask(schema, 3)
    assert len({ask(schema, seed) for seed in range(6)}) > 1


def test_a_long_reply_is_cut_off_at_max_tokens() -> None:
    request = Request(
        (Turn(role="user", content="one two three four"),), max_tokens=2, schema={"type": "string"}
    )
    ((_, reply),) = FakeModel().complete([request])
    assert reply.finish_reason == "length"
    assert reply.completion_tokens == 2


def test_garbage_is_no_json_and_streaming_gives_the_whole_reply() -> None:
    request = Request((Turn(role="user", content="one two three"),), schema={"type": "object"})
    ((_, reply),) = FakeModel(garbage=True).complete([request])
    with pytest.raises(ValueError):
        json.loads(reply.text)
    plain = Request((Turn(role="user", content="one two three"),))
    assert "".join(FakeModel().stream(plain)) == "one two three"


def test_tokens_are_counted_and_numbered() -> None:
    model = FakeModel()
    assert model.count_tokens("a b, c.") == 5
    assert model.token_ids("a b", special=True)[0] == 0
    assert len(model.token_ids("a b")) == 2
