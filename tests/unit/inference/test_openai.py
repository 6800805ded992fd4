"""A model behind an address, over a real socket: replies, limits, failures, keys kept secret."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import pytest
from mock_endpoint import Limits, MockEndpoint

from potstill.errors import ModelError, TeacherError
from potstill.inference import keys as keys_module
from potstill.inference import openai, traffic
from potstill.inference.base import Reply, Request, TextModel
from potstill.inference.endpoint import EndpointConfig
from potstill.inference.fake import FakeModel
from potstill.inference.open import engine_identity, open_model, resolve_backend
from potstill.records import Turn

SCHEMA = {
    "type": "object",
    "properties": {"question": {"type": "string"}, "answer": {"type": "string"}},
}
SECRET, OTHER = "sk-test-4f9a1b7c", "sk-other-77aa88bb"


def requests(count: int, **fields: Any) -> list[Request]:
    words = ("lamp", "harbour", "bell", "market")
    return [
        Request(
            (Turn(role="user", content=f"The {words[n % 4]} number {n} burns all night."),),
            seed=n,
            **fields,
        )
        for n in range(count)
    ]


class Client:
    """A model opened on a mock, and what it warned of."""

    def __init__(self, model: TextModel, warned: list[str]) -> None:
        self.model, self.warned = model, warned

    def ask(self, asked: list[Request]) -> dict[int, Reply]:
        return dict(self.model.complete(asked))


@contextmanager
def opened(url: str, **fields: Any) -> Iterator[Client]:
    warned: list[str] = []
    endpoint = EndpointConfig(base_url=url, **fields)
    with open_model("openai:m", endpoint=endpoint, warn=warned.append) as model:
        yield Client(model, warned)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two keys in the environment, short waits, and a body that is soon too long."""
    monkeypatch.setenv("KEY_A", SECRET)
    monkeypatch.setenv("KEY_B", OTHER)
    monkeypatch.setattr(keys_module, "BACKOFF_SECONDS", 0.02)
    monkeypatch.setattr(openai, "LONGEST_BODY", 2**20)


def test_replies_are_those_of_the_model_for_each_request() -> None:
    asked = requests(40, schema=SCHEMA, temperature=0.4)
    with MockEndpoint() as server, opened(server.url) as client:
        replies = client.ask(asked)
    plain = dict(FakeModel().complete(asked))
    assert {n: one.text for n, one in replies.items()} == {n: one.text for n, one in plain.items()}
    assert all(replies[n].completion_tokens == plain[n].completion_tokens for n in plain)
    assert server.most_at_once <= 8
    assert client.warned == []
    assert server.seen[0].body["model"] == "m"


def test_it_can_be_asked_again_and_closed_twice() -> None:
    with MockEndpoint() as server, opened(server.url) as client:
        assert len(client.ask(requests(3))) == len(client.ask(requests(3))) == 3
        assert client.ask([]) == {}
        client.model.close()
        client.model.close()


def test_no_more_run_at_once_than_allowed_even_if_nobody_takes_the_replies() -> None:
    with MockEndpoint() as server, opened(server.url, concurrency=3) as client:
        replies = client.model.complete(iter(requests(50)))
        list(islice(replies, 2))
        time.sleep(0.2)
        assert server.count <= 2 + 3
        replies.close()  # type: ignore[attr-defined]
        assert len(client.ask(requests(5))) == 5


def test_requests_are_read_only_as_they_are_sent() -> None:
    read = 0

    def endless() -> Iterator[Request]:
        nonlocal read
        for one in requests(500):
            read += 1
            yield one

    with MockEndpoint(delay=lambda n: 0.02) as server, opened(server.url, concurrency=2) as client:
        replies = client.model.complete(endless())
        list(islice(replies, 4))
        assert read <= 4 + 2 + 1
        replies.close()  # type: ignore[attr-defined]


def test_an_error_of_who_asks_comes_through() -> None:
    def broken() -> Iterator[Request]:
        yield from requests(2)
        raise KeyError("mine")

    with MockEndpoint() as server, opened(server.url) as client, pytest.raises(KeyError):
        list(client.model.complete(broken()))


@pytest.mark.parametrize("form", ["json_schema", "json_object", "prompt"])
def test_a_server_that_takes_less_structure_is_asked_for_less_and_told_of_once(form: str) -> None:
    ladder = ["json_schema", "json_object", "prompt"]

    def behave(n: int, seen: Any) -> Any:
        kind = seen.body.get("response_format", {}).get("type", "prompt")
        if ladder.index(kind) < ladder.index(form):
            return 400, {}, json.dumps({"error": {"message": f"response_format {kind}: unknown"}})
        return None

    with MockEndpoint(behave=behave) as server, opened(server.url) as client:
        replies = client.ask(requests(30, schema=SCHEMA))
    assert {one.finish_reason for one in replies.values()} == {"stop"}
    assert len(client.warned) == ladder.index(form)
    last = server.seen[-1].body
    assert last.get("response_format", {}).get("type", "prompt") == form
    assert ("JSON Schema" in last["messages"][-1]["content"]) == (form != "json_schema")


def test_missing_usage_is_estimated_and_said_once() -> None:
    with MockEndpoint(usage=False) as server, opened(server.url) as client:
        replies = client.ask(requests(9))
    assert all(one.prompt_tokens > 5 and one.completion_tokens > 2 for one in replies.values())
    assert len(client.warned) == 1
    assert "estimated" in client.warned[0]


def test_thoughts_and_cut_off_replies() -> None:
    with (
        MockEndpoint(text=lambda one: "<think>hm</think>\n\nYes.", finish="length") as server,
        opened(server.url) as client,
    ):
        (reply,) = client.ask(requests(1)).values()
    assert (reply.text, reply.finish_reason) == ("Yes.", "length")


@pytest.mark.parametrize(
    "trouble",
    ["drop", "cut", "nonsense", "garbage", "half", "empty", "html", (500, {}, "oops"),
     (503, {}, "<html>busy</html>"), (503, {"Retry-After": "0"}, ""), (404, {}, "{}"),
     (429, {"Retry-After": "0"}, "{}"), (429, {"Retry-After": "0.05"}, ""), (429, {}, "")],
)  # fmt: skip
def test_a_trouble_that_passes_loses_nothing(trouble: Any) -> None:
    with (
        MockEndpoint(behave=lambda n, seen: trouble if n > 5 and n % 3 == 0 else None) as server,
        opened(server.url, concurrency=4) as client,
    ):
        asked = requests(30)
        replies = client.ask(asked)
    assert {n: one.text for n, one in replies.items()} == {
        n: one.text for n, one in dict(FakeModel().complete(asked)).items()
    }


@pytest.mark.parametrize("trouble", ["hang", "stall"])
def test_what_hangs_is_sent_again(trouble: str) -> None:
    with (
        MockEndpoint(behave=lambda n, seen: trouble if n in (3, 7) else None) as server,
        opened(server.url, first_byte_seconds=0.3, timeout_seconds=0.5) as client,
    ):
        replies = client.ask(requests(20))
    assert {one.finish_reason for one in replies.values()} == {"stop"}
    assert server.count == 22


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("drop", "connection broke"),
        ("cut", "connection broke"),
        ("nonsense", "connection broke"),
        ("garbage", "no JSON"),
        ("half", "no JSON"),
        ("empty", "no reply"),
        ("endless", "no end"),
        ("html", "HTML"),
        ("hang", "first byte of a reply within 0.3 seconds"),
        ("stall", "whole reply within 0.5 seconds"),
        ((404, {}, '{"error": {"message": "The model m does not exist"}}'), "does not exist"),
        ((404, {}, '{"detail": "Not Found"}'), "Not Found"),
        ((301, {"Location": "https://elsewhere.example/"}, ""), "https://elsewhere.example/"),
        ((500, {}, "oops"), "oops"),
        ((401, {}, '{"error": "who are you?"}'), "wants a key"),
        ((429, {"Retry-After": "7200"}, "{}"), "120 minutes"),
        ((400, {}, '{"error": "no such field"}'), "refuses every request"),
    ],
)
def test_a_useless_endpoint_is_one_early_error(trouble: Any, said: str) -> None:
    # Short only where the wait itself is what is told: a busy machine is slow to see the others.
    waits = {"hang": {"first_byte_seconds": 0.3}, "stall": {"timeout_seconds": 0.5}}
    short = waits.get(trouble, {}) if isinstance(trouble, str) else {}
    with (
        MockEndpoint(behave=lambda n, seen: trouble) as server,
        opened(server.url, **short) as client,
        pytest.raises(TeacherError, match=said) as caught,
    ):
        client.ask(requests(500))
    assert server.count < 40
    assert server.url in caught.value.message
    assert caught.value.hint
    assert caught.value.__cause__ is None


def test_nobody_at_the_address_is_one_early_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        began = time.monotonic()
        with opened(url) as client, pytest.raises(TeacherError, match="no connection"):
            client.ask(requests(500))
        assert time.monotonic() - began < 5


def test_a_server_that_dies_ends_the_call_and_loses_no_request_to_it() -> None:
    got: list[Reply] = []
    with (
        MockEndpoint(behave=lambda n, seen: "drop" if n >= 20 else None) as server,
        opened(server.url, max_retries=1) as client,
        pytest.raises(TeacherError, match="answers no more"),
    ):
        got.extend(reply for _, reply in client.model.complete(requests(500)))
    assert [one.finish_reason for one in got].count("stop") == 20
    assert len(got) <= 20 + traffic.GONE


def test_one_request_that_is_refused_is_refused_alone() -> None:
    def behave(n: int, seen: Any) -> Any:
        long = "number 5 " in seen.body["messages"][0]["content"]
        return (400, {}, '{"error": {"message": "the prompt is too long"}}') if long else None

    with MockEndpoint(behave=behave) as server, opened(server.url) as client:
        replies = client.ask(requests(10))
    assert [n for n, one in replies.items() if one.finish_reason == "error"] == [5]
    assert replies[5].text == "HTTP 400: the prompt is too long"


def test_one_request_that_always_fails_is_given_up_after_its_retries() -> None:
    def behave(n: int, seen: Any) -> Any:
        return "garbage" if "number 5 " in seen.body["messages"][0]["content"] else None

    with MockEndpoint(behave=behave) as server, opened(server.url, max_retries=2) as client:
        replies = client.ask(requests(10))
    assert [n for n, one in replies.items() if one.finish_reason == "error"] == [5]
    assert server.count == 9 + 3


def test_the_limits_of_each_key_are_kept() -> None:
    limits = {SECRET: Limits(concurrency=2), OTHER: Limits(concurrency=5)}
    keys = ({"variable": "KEY_A", "concurrency": 2}, {"variable": "KEY_B", "concurrency": 5})
    with (
        MockEndpoint(limits, delay=lambda n: 0.02) as server,
        opened(server.url, keys=keys) as client,
    ):
        replies = client.ask(requests(60))
    assert {one.finish_reason for one in replies.values()} == {"stop"}
    assert [one.broken for one in server.accounts.values()] == [{}, {}]
    assert [one.most_at_once for one in server.accounts.values()] == [2, 5]


def test_a_narrower_server_is_found_out_and_nothing_is_lost() -> None:
    limits = {SECRET: Limits(concurrency=2)}
    with (
        MockEndpoint(limits, delay=lambda n: 0.01, retry_after="0.05") as server,
        opened(server.url, keys=("KEY_A",), concurrency=16) as client,
    ):
        replies = client.ask(requests(12))
    assert {one.finish_reason for one in replies.values()} == {"stop"}
    assert server.accounts[SECRET].broken["concurrency"] > 0


def test_a_revoked_key_is_taken_out_and_the_others_do_its_work() -> None:
    limits = {SECRET: Limits(revoked=True), OTHER: Limits()}
    with MockEndpoint(limits) as server, opened(server.url, keys=("KEY_A", "KEY_B")) as client:
        replies = client.ask(requests(30))
    assert {one.finish_reason for one in replies.values()} == {"stop"}
    assert len(client.warned) == 1
    assert "KEY_A" in client.warned[0]
    assert sum(one.key == SECRET for one in server.seen) <= 8


def test_all_keys_revoked_is_one_error_that_names_variables_only() -> None:
    limits = {key: Limits(revoked=True) for key in (SECRET, OTHER)}
    with MockEndpoint(limits) as server, opened(server.url, keys=("KEY_A", "KEY_B")) as client:
        for _ in range(2):
            with pytest.raises(TeacherError, match="KEY_A, KEY_B") as caught:
                client.ask(requests(30))
        said = str(caught.value) + "".join(client.warned)
        assert SECRET not in said
        assert OTHER not in said
        assert "Incorrect API key provided: [key]" in said


def test_a_key_is_sent_to_its_endpoint_only() -> None:
    with MockEndpoint() as other:
        there = (307, {"Location": f"{other.url}/chat/completions"}, "")
        with (
            MockEndpoint(behave=lambda n, seen: there) as server,
            opened(server.url, keys=("KEY_A",)) as client,
            pytest.raises(TeacherError, match="redirected"),
        ):
            client.ask(requests(3))
    assert other.seen == []


@pytest.mark.parametrize("status", [200, 400, 401, 404, 429, 500])
def test_a_server_that_echoes_the_key_does_not_get_it_shown(status: int) -> None:
    echo = json.dumps({
        "error": {"message": "x" * 290 + " bad key {key} was sent, {key}"},
        "choices": [{"message": {"content": "your key is {key}"}}],
    })  # fmt: skip
    if status == 200:
        echo = json.dumps({"choices": json.loads(echo)["choices"]})
    wait = {"Retry-After": "5000"} if status == 429 else {}
    said: list[str] = []
    with (
        MockEndpoint(behave=lambda n, seen: (status, wait, echo)) as server,
        opened(server.url, keys=("KEY_A",), max_retries=1) as client,
    ):
        try:
            said += [reply.text for reply in client.ask(requests(6)).values()]
        except TeacherError as error:
            said.append(f"{error!r} {error} {error.__context__!r}")
        said += client.warned
    assert said
    assert not any(SECRET[:12] in one for one in said)


def test_streams_come_in_pieces_without_thoughts() -> None:
    (asked,) = requests(1)
    with MockEndpoint() as server, opened(server.url, keys=("KEY_A",)) as client:
        pieces = list(client.model.stream(asked))
        assert len(pieces) > 2
        assert "".join(pieces) == next(iter(dict(FakeModel().complete([asked])).values())).text
        server.text = lambda one: "<think>so it must be</think>\n\nThe bell."
        assert "".join(client.model.stream(asked)) == "The bell."
        server.text = lambda one: "<th it is"
        assert "".join(client.model.stream(asked)) == "<th it is"
        assert server.seen[0].headers["authorization"] == f"Bearer {SECRET}"


@pytest.mark.parametrize(
    "trouble", ["stream garbage", "html", "drop", "hang", (500, {}, "bad {key}"), (401, {}, "no")]
)
def test_a_stream_that_breaks_is_one_error(trouble: Any) -> None:
    with (
        MockEndpoint(behave=lambda n, seen: trouble) as server,
        opened(server.url, keys=("KEY_A",), first_byte_seconds=0.3) as client,
        pytest.raises(TeacherError, match="refused or broke off") as caught,
    ):
        list(client.model.stream(requests(1)[0]))
    assert SECRET not in str(caught.value)


def test_an_abandoned_stream_ends() -> None:
    with MockEndpoint() as server, opened(server.url) as client:
        stream = client.model.stream(requests(1)[0])
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        assert len(client.ask(requests(2))) == 2
    assert not any(one.name == "endpoint" for one in threading.enumerate())


def test_tokens_are_estimated_and_ids_are_refused() -> None:
    with MockEndpoint() as server, opened(server.url) as client:
        assert client.model.count_tokens("four words are here") == 5
        with pytest.raises(ModelError, match="behind an address"):
            client.model.token_ids("x")


@pytest.mark.parametrize(
    "missing", [lambda: open_model("openai:M").__enter__(), lambda: engine_identity("openai:M")]
)
def test_a_model_without_an_address_is_refused(missing: Callable[[], object]) -> None:
    with pytest.raises(ModelError, match=r"^The teacher openai:M is behind an address"):
        missing()


def test_the_backend_and_the_identity_follow_from_the_reference() -> None:
    endpoint = EndpointConfig(base_url="http://127.0.0.1:1/v1")
    assert resolve_backend("openai:m") == "openai"
    assert resolve_backend("openai:m", "fake") == "fake"
    assert engine_identity("openai:m", "auto", endpoint) == endpoint.identity("m")
