"""The service as OpenAI's own client sees it, over a tiny student in llama.cpp."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from served import Served, served


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, tiny_ggufs: dict[str, Path]
) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("served"), tiny_ggufs["q8_0"]) as one:
        yield one


@pytest.fixture
def client(service: Served) -> Iterator[openai.OpenAI]:
    with service.client() as one:
        yield one


ASKED: Any = [{"role": "user", "content": "How many litres?"}]


def test_chat_and_its_stream_say_the_same(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=12)
    assert whole.object == "chat.completion"
    assert whole.model == "tiny"
    assert whole.choices[0].finish_reason in {"stop", "length"}
    assert whole.usage is not None
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert 0 < whole.usage.completion_tokens <= 12
    chunks = list(
        client.chat.completions.create(
            model="tiny",
            messages=ASKED,
            max_tokens=12,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    said = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert said == whole.choices[0].message.content
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert not any(chunk.usage for chunk in chunks[:-1])


def test_a_stream_counts_tokens_only_if_asked(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=3, stream=True)
    )
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "length"


def test_completions_stop_where_told(client: openai.OpenAI) -> None:
    prompt = "The boiler of unit 7 holds"
    free = client.completions.create(model="tiny", prompt=prompt, max_tokens=60)
    text = free.choices[0].text
    stop = max(re.findall(r"[A-Za-z ]{3,}", text[4:]), key=len)[:5]
    cut = client.completions.create(model="tiny", prompt=prompt, max_tokens=60, stop=[stop])
    assert cut.choices[0].text == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_a_seed_repeats_a_draw(client: openai.OpenAI) -> None:
    def draw(seed: int) -> str | None:
        drawn = client.chat.completions.create(
            model="tiny", messages=ASKED, max_tokens=16, temperature=1.5, seed=seed, top_p=0.95
        )
        return drawn.choices[0].message.content

    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in (1, 2, 3)}) > 1


def test_logprobs_of_both_kinds(client: openai.OpenAI) -> None:
    chat = client.chat.completions.create(
        model="tiny", messages=ASKED, max_tokens=4, logprobs=True, top_logprobs=3
    )
    assert chat.choices[0].logprobs is not None
    content = chat.choices[0].logprobs.content
    assert content
    assert "".join(one.token for one in content) == chat.choices[0].message.content
    for one in content:
        assert len(one.top_logprobs) == 3
        assert one.logprob == pytest.approx(max(top.logprob for top in one.top_logprobs))
        assert sum(math.exp(top.logprob) for top in one.top_logprobs) <= 1 + 1e-4
    plain = client.completions.create(model="tiny", prompt="The keeper", max_tokens=4, logprobs=2)
    found = plain.choices[0].logprobs
    assert found is not None
    assert found.tokens is not None
    assert found.token_logprobs is not None
    assert "".join(found.tokens) == plain.choices[0].text
    assert len(found.token_logprobs) == len(found.tokens)
    assert found.top_logprobs is not None
    for token, logprob, top in zip(
        found.tokens, found.token_logprobs, found.top_logprobs, strict=True
    ):
        assert len(top) == 2 or "\ufffd" in token
        assert logprob == pytest.approx(max(top.values()))


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"litres": {"type": "integer"}, "safe": {"type": "boolean"}},
    "required": ["litres", "safe"],
    "additionalProperties": False,
}


def test_an_answer_follows_its_schema(client: openai.OpenAI) -> None:
    said = client.chat.completions.create(
        model="tiny",
        messages=ASKED,
        max_tokens=120,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "boiler", "schema": SCHEMA, "strict": True},
        },
    )
    if said.choices[0].finish_reason == "stop":
        value = json.loads(said.choices[0].message.content or "")
        assert isinstance(value["litres"], int)
        assert isinstance(value["safe"], bool)
    assert (said.choices[0].message.content or "").startswith("{")
    free = client.chat.completions.create(
        model="tiny", messages=ASKED, max_tokens=60, response_format={"type": "json_object"}
    )
    assert (free.choices[0].message.content or "").lstrip().startswith("{")


def test_models(client: openai.OpenAI) -> None:
    assert [one.id for one in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="There is no model"):
        client.models.retrieve("other")


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"model": "gpt-4"}, 404, "model_not_found"),
        ({"n": 2}, 400, "invalid_value"),
        ({"n": True}, 400, "invalid_value"),
        ({"n": 1.0}, 400, "invalid_value"),
        ({"max_tokens": -1}, 400, "invalid_value"),
        ({"max_tokens": 257}, 400, "invalid_value"),
        ({"max_tokens": 10**30}, 400, "invalid_value"),
        ({"temperature": 1e9}, 400, "invalid_value"),
        ({"top_p": 0}, 400, "invalid_value"),
        ({"seed": 2**80}, 400, "invalid_value"),
        ({"stop": [""]}, 400, "invalid_value"),
        ({"stop": ["x"] * 17}, 400, "invalid_value"),
        ({"messages": []}, 400, "invalid_value"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "invalid_value"),
        ({"tools": []}, 400, "unknown_field"),
        ({"logprobs": 3}, 400, "invalid_value"),
        ({"top_logprobs": 3}, 400, "invalid_value"),
        ({"stream_options": {"include_usage": True}, "stream": False}, 400, "invalid_value"),
        ({"response_format": {"type": "json_schema"}}, 400, "invalid_value"),
        (
            {"messages": [{"role": "user", "content": "litre " * 400}]},
            400,
            "context_length_exceeded",
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": {"type": "nonsense"}},
                }
            },
            400,
            "refused_by_engine",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_wrong_is_said(
    client: openai.OpenAI, fields: dict[str, Any], status: int, code: str, stream: bool
) -> None:
    body = {"model": "tiny", "messages": ASKED, "max_tokens": 4, "stream": stream} | fields
    with pytest.raises(openai.APIStatusError) as caught:
        client.post("/chat/completions", body=body, cast_to=object)
    assert caught.value.status_code == status
    error: Any = caught.value.body
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert error["type"] == "invalid_request_error"
    assert caught.value.response.headers["x-request-id"].startswith("req-")
