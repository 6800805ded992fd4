"""What an endpoint sends back: replies in all their forms, and every kind of failure."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.inference.answers import Answer, Failure, read, read_event, without_thoughts

NOW = 1_780_000_000.0


def answer(message: dict[str, Any], finish: str | None = "stop", **more: Any) -> Any:
    body = {"choices": [{"message": message, "finish_reason": finish}], **more}
    return read(200, {"content-type": "application/json"}, json.dumps(body).encode(), NOW)


def failure(status: int, body: str = "", **headers: str) -> Failure:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    found = read(status, named, body.encode(), NOW)
    assert isinstance(found, Failure)
    return found


def test_a_plain_reply_with_its_tokens() -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 2}
    assert answer({"content": "yes"}, usage=usage) == Answer("yes", "stop", 7, 2)


@pytest.mark.parametrize("usage", [None, {}, "many", {"prompt_tokens": -1}, {"prompt_tokens": "3"}])
def test_tokens_that_are_not_counted_are_none(usage: Any) -> None:
    assert answer({"content": "yes"}, usage=usage) == Answer("yes", "stop", None, None)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": '<think>\nhm {"a": 1}\n</think>\n\n{}'}, "{}"),
        ({"content": "hm, so it is\n</think>\n{}"}, "{}"),
        ({"content": "<thinking>x</thinking>{}"}, "{}"),
        ({"content": "<think>it never ends"}, ""),
        ({"content": "{}", "reasoning_content": "because"}, "{}"),
        ({"content": None, "reasoning_content": "because"}, ""),
        ({"content": [{"type": "thinking", "thinking": []}, {"type": "text", "text": "{}"}]}, "{}"),
        ({"content": "a < b <think> c"}, "a < b <think> c"),
    ],
)
def test_thoughts_are_no_part_of_a_reply(message: dict[str, Any], text: str) -> None:
    assert answer(message).text == text


def test_half_of_a_sign_is_marked_as_lost() -> None:
    """Servers that cut a text by its UTF-16 halves send one of them; no file can hold it."""
    assert answer({"content": "a \ud83d b"}).text == "a \ufffd b"
    event = {"choices": [{"delta": {"content": "\ude00"}}]}
    assert read_event("data: " + json.dumps(event)) == "\ufffd"


@pytest.mark.parametrize(
    ("finish", "meant"),
    [
        ("stop", "stop"),
        (None, "stop"),
        ("eos", "stop"),
        ("tool_calls", "stop"),
        ("length", "length"),
        ("model_length", "length"),
        ("max_tokens", "length"),
    ],
)
def test_finish_reasons(finish: str | None, meant: str) -> None:
    assert answer({"content": "x"}, finish).finish_reason == meant


def test_withheld_and_refused_replies_say_so() -> None:
    assert answer({"content": ""}, "content_filter").kind == "request"
    assert "I cannot" in answer({"content": None, "refusal": "I cannot"}).reason
    assert answer({"content": ""}, "error").kind == "retry"


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (429, "slow down", "busy"),
        (429, '{"error": {"message": "no", "code": "insufficient_quota"}}', "key"),
        # What Gemini says of every limit, also one of a minute.
        (
            429,
            '[{"error": {"message": "You exceeded your current quota, please check your plan and '
            'billing details.", "details": [{"retryDelay": "13s"}]}}]',
            "busy",
        ),
        (401, "{}", "key"),
        (402, "", "key"),
        (403, "", "key"),
        (400, '[{"error": {"message": "API key not valid. Please pass one."}}]', "key"),
        (404, '{"detail": "Not Found"}', "useless"),
        (405, "", "useless"),
        (400, '{"message": "The model `m` does not exist."}', "useless"),
        (400, '{"error": "no seed, please"}', "complaint"),
        (422, '{"detail": [{"loc": ["body", "seed"], "msg": "extra"}]}', "complaint"),
        (413, "", "request"),
        (418, "", "request"),
        (408, "", "retry"),
        (500, "<html><style>p {}</style><p>Oops</p></html>", "retry"),
        (529, "", "retry"),
        (200, "{]", "retry"),
        (200, "", "retry"),
        (200, "[]", "retry"),
        (200, '{"choices": []}', "retry"),
        (200, '{"choices": [{"message": "hello"}]}', "retry"),
        (200, '{"error": {"message": "upstream", "code": 429}}', "busy"),
        (200, '{"error": {"message": "upstream"}}', "retry"),
        (200, "  <!doctype html><title>Sign in</title>", "useless"),
        (302, "", "useless"),
    ],
)
def test_kinds_of_failure(status: int, body: str, kind: str) -> None:
    assert failure(status, body).kind == kind


def test_reasons_are_one_readable_line() -> None:
    html = failure(500, "<html><style>p {}</style>\n<p>Out of\n  order\x00</p></html>")
    assert html.reason == "HTTP 500: Out of order"
    assert failure(404, '{"error": {"message": "no model m"}}').reason.endswith("no model m")
    assert "body" in failure(422, '{"detail": [{"loc": ["body"], "msg": "extra"}]}').reason
    assert failure(500).reason == "HTTP 500: an empty body"
    to = failure(301, location="https://user:secret@elsewhere.example/v1?key=secret")
    assert to.reason.endswith("redirected to https://elsewhere.example/v1")
    assert failure(302, location="http://[").kind == "useless"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry_after": "7"}, 7.0),
        ({"retry_after": "0.5"}, 0.5),
        ({"retry_after_ms": "1500", "retry_after": "9"}, 1.5),
        ({"retry_after": "Thu, 28 May 2026 20:27:10 GMT"}, 30.0),
        ({"retry_after": "Thu, 28 May 2026 20:26:10 GMT"}, 0.0),
        ({"retry_after": "soon"}, None),
        ({"retry_after": "-3"}, None),
        ({}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert failure(429, **headers).retry_after == seconds


def test_retry_after_in_geminis_body_and_of_an_overloaded_server() -> None:
    body = '[{"error": {"details": [{"retryDelay": "34.5s"}]}}]'
    assert failure(429, body).retry_after == 34.5
    assert (failure(503, retry_after="2").kind, failure(503).kind) == ("busy", "retry")


@given(st.integers(100, 599), st.binary(max_size=200))
def test_no_body_is_too_strange(status: int, body: bytes) -> None:
    found = read(status, {}, body, NOW)
    assert isinstance(found, Answer) or (found.reason and found.reason.isprintable())


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=9), lambda inner: (
    st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["choices", "message", "content", "error", "code", "usage", "delta"]),
        inner, max_size=4)
), max_leaves=20))  # fmt: skip
def test_no_json_is_too_strange(value: Any) -> None:
    for status in (200, 400):
        read(status, {}, json.dumps(value).encode(), NOW)
    with suppress(ValueError):
        read_event("data: " + json.dumps(value))


def test_events_of_a_stream() -> None:
    def said(text: str) -> str:
        return "data: " + json.dumps({"choices": [{"delta": {"content": text}}]})

    assert [read_event(line) for line in (said("a"), ": ping", "", "event: x")] == ["a", "", "", ""]
    assert read_event("data: [DONE]") is None
    assert read_event('data: {"choices": [], "usage": {}}') == ""
    for line in ("data: {]", 'data: {"error": {"message": "broke"}}', "<html>"):
        with pytest.raises(ValueError):
            read_event(line)


def test_thoughts_elsewhere_stay() -> None:
    assert without_thoughts("say <think> twice") == "say <think> twice"
