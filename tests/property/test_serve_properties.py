"""Whatever is sent, nobody gets a 5xx, and every error is the error object."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from benchmarks import serve_judged
from benchmarks.serve_mutations import mutated
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from served import EngineStandIn, served

from potstill.serve.app import application
from potstill.serve.auth import SCOPES, KeyFile
from potstill.serve.feedback import FeedbackStore
from potstill.serve.gateway import Gateway, ServeConfig
from potstill.serve.limits import KeyLimits
from potstill.serve.monitor import Log

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/feedback")


class EchoEngine(EngineStandIn):
    """Answers with the last message, a character at a time."""

    local, model, context_tokens = True, "echo", 512

    async def events(self, path: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
        chat = "messages" in body
        said = body["messages"][-1]["content"] if chat else body["prompt"]
        for sign in said[: body["max_tokens"]]:
            yield {
                "choices": [{"index": 0, "delta": {"content": sign}} if chat else {"text": sign}]
            }
            await asyncio.sleep(0)
        yield {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Gateway:
    folder = tmp_path_factory.mktemp("serve")
    return Gateway(
        name="echo",
        config=ServeConfig(parallel=4, queue=16, body_bytes=20_000),
        engine=EchoEngine(),
        folder=folder,
        keys=None,
        ask=lambda passage, question: question,
        feedback=FeedbackStore(Path(folder) / "feedback.sqlite"),
        log=Log(io.StringIO()),
    )


def client(gateway: Gateway) -> httpx2.AsyncClient:
    transport = httpx2.ASGITransport(application(gateway), raise_app_exceptions=False)
    return httpx2.AsyncClient(transport=transport, base_url="http://localhost")


def send(gateway: Gateway, path: str, content: bytes) -> httpx2.Response:
    async def work() -> httpx2.Response:
        async with client(gateway) as one:
            return await one.post(
                path, content=content, headers={"Content-Type": "application/json"}
            )

    return asyncio.run(work())


def check(answer: httpx2.Response) -> None:
    assert answer.status_code < 500, answer.text
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        assert len(error["message"]) < 1000
        assert answer.headers["x-request-id"]


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=20)
    | st.sampled_from(["echo", "user", "text", "json_object", "json_schema", "a" * 3000, "\ud800"])
)
ANY = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
FIELDS = st.sampled_from(
    """model messages prompt input n stream stream_options max_tokens max_completion_tokens
    temperature top_p seed stop presence_penalty frequency_penalty user response_format logprobs
    top_logprobs echo best_of encoding_format dimensions response thumb correction flag
    comment tools""".split()
)
WHOLE: dict[str, Any] = {
    "model": "echo",
    "messages": [{"role": "user", "content": "said"}],
    "prompt": "said",
}
FEW = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@FEW
@given(st.sampled_from(PATHS), st.dictionaries(FIELDS, ANY, max_size=4), st.booleans())
def test_no_field_breaks_it(
    gateway: Gateway, path: str, fields: dict[str, Any], whole: bool
) -> None:
    base = dict(WHOLE) if whole else {}
    base.pop("prompt" if "chat" in path else "messages", None)
    check(send(gateway, path, json.dumps(base | fields).encode()))
    assert gateway.gate.running == gateway.gate.waiting == 0


@FEW
@given(st.sampled_from(PATHS), st.binary(max_size=60), st.data())
def test_no_bytes_break_it(gateway: Gateway, path: str, junk: bytes, data: st.DataObject) -> None:
    body = json.dumps(WHOLE).encode()
    start = data.draw(st.integers(0, len(body)))
    end = data.draw(st.integers(start, len(body)))
    check(send(gateway, path, body[:start] + junk + body[end:]))


def test_far_beyond_capacity_no_answer_is_lost_or_another_ones(gateway: Gateway) -> None:
    async def one(http: httpx2.AsyncClient, number: int) -> int:
        mine = f"question {number} of many, {number * 7919}"
        body = {
            "model": "echo",
            "messages": [{"role": "user", "content": mine}],
            "stream": bool(number % 2),
        }
        answer = await http.post("/v1/chat/completions", json=body)
        check(answer)
        if answer.status_code == 429:
            assert int(answer.headers["retry-after"]) >= 1
            return 429
        if not number % 2:
            assert answer.json()["choices"][0]["message"]["content"] == mine
            return 200
        lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
        assert lines.pop() == "[DONE]"
        chunks = [json.loads(line) for line in lines]
        said = [one["delta"].get("content", "") for chunk in chunks for one in chunk["choices"]]
        assert "".join(said) == mine
        assert len({chunk["id"] for chunk in chunks}) == 1
        return 200

    async def work() -> list[int]:
        async with client(gateway) as http:
            return await asyncio.gather(*(one(http, number) for number in range(200)))

    statuses = asyncio.run(work())
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= gateway.config.parallel + gateway.config.queue
    assert gateway.gate.running == gateway.gate.waiting == 0
    assert asyncio.run(work())[0] == 200  # it is as it was


def test_mutated_requests_get_the_error_object(tmp_path: Path) -> None:
    """The first of those that `benchmarks/serve_fuzz.py` sends ten thousand of."""
    keys = KeyFile(tmp_path / "keys.json")
    key = keys.add("all", SCOPES, KeyLimits())
    config = ServeConfig(port=0, parallel=4, body_seconds=0.3)
    engine: Any = EchoEngine()
    with served(tmp_path, engine, config, keys=keys) as service:
        target = serve_judged.Target(int(service.address.rsplit(":", 1)[1]), key, 0)
        problems = []
        with ThreadPoolExecutor(8) as pool:
            requests = [mutated(11, number, "tiny", key) for number in range(400)]
            for number, reply in enumerate(
                pool.map(lambda one: serve_judged.send(target, one), requests)
            ):
                if reply.problem:
                    problems.append((number, requests[number].how, reply.problem))
        assert problems == []
        assert '"event": "failed"' not in service.log.getvalue()
        until = time.monotonic() + 10
        while service.gateway.gate.running and time.monotonic() < until:
            time.sleep(0.01)
        assert service.gateway.gate.running == service.gateway.gate.waiting == 0
