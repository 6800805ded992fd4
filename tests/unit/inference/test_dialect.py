"""How an endpoint is asked, and what is learned from its complaints."""

from __future__ import annotations

from typing import Any

import pytest

from potstill.inference.base import Request
from potstill.inference.dialect import Dialect
from potstill.inference.endpoint import EndpointConfig
from potstill.records import Turn

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}


def dialect(**fields: Any) -> Dialect:
    return Dialect(EndpointConfig(base_url="http://127.0.0.1/v1", **fields), "m")


def request(**fields: Any) -> Request:
    return Request((Turn(role="user", content="Hello."),), **fields)


def test_a_greedy_request_says_no_more_than_it_must() -> None:
    assert dialect().body(request(max_tokens=9)) == {
        "model": "m",
        "messages": [{"role": "user", "content": "Hello."}],
        "max_tokens": 9,
        "temperature": 0.0,
    }


def test_sampling_stops_extras_and_schemas_are_said() -> None:
    body = dialect(extra={"reasoning_effort": "low"}).body(
        request(temperature=0.5, seed=3, top_p=0.9, stop=("x",), schema=SCHEMA), stream=True
    )
    assert (body["seed"], body["top_p"], body["stop"]) == (3, 0.9, ["x"])
    assert (body["stream"], body["reasoning_effort"]) == (True, "low")
    assert body["response_format"]["json_schema"]["schema"] == SCHEMA


def test_the_form_is_loosened_step_by_step_and_said_in_words() -> None:
    one = dialect()
    asked = request(schema=SCHEMA)
    forms = []
    for _ in range(3):
        body = one.body(asked)
        forms.append(body.get("response_format", {}).get("type"))
        note = one.adapt(one.version, body, "HTTP 400: response_format is not supported here")
    assert forms == ["json_schema", "json_object", None]
    assert note is None
    assert '"a"' in one.body(asked)["messages"][-1]["content"]


def test_many_complaints_about_one_body_count_once() -> None:
    one = dialect()
    body = one.body(request(schema=SCHEMA))
    assert one.adapt(0, body, "unknown field response_format")
    assert one.adapt(0, body, "unknown field response_format") == ""
    assert one.form == "json_object"


@pytest.mark.parametrize("form", ["json_schema", "json_object", "prompt"])
def test_a_form_that_is_asked_for_stays(form: str) -> None:
    one = dialect(structured=form)
    body = one.body(request(schema=SCHEMA))
    assert body.get("response_format", {}).get("type", "prompt") == form
    assert one.adapt(0, body, "response_format: unsupported json_schema") is None


@pytest.mark.parametrize("name", ["seed", "top_p", "temperature", "stop"])
def test_a_field_that_is_not_taken_is_left_out(name: str) -> None:
    one = dialect()
    asked = request(temperature=0.5, seed=3, stop=("x",))
    note = one.adapt(0, one.body(asked), f"Unsupported parameter: '{name}' is not known")
    assert note is not None
    assert name in note
    assert name not in one.body(asked)


def test_mistral_takes_no_seed_and_says_so_in_a_list() -> None:
    one = dialect()
    said = 'HTTP 422: [{"type": "extra_forbidden", "loc": ["body", "seed"], '
    said += '"msg": "Extra inputs are not permitted", "input": 3}]'
    assert one.adapt(0, one.body(request(temperature=0.5)), said)
    assert "seed" not in one.body(request(temperature=0.5))


def test_newer_models_of_openai_name_the_length_otherwise() -> None:
    one = dialect()
    said = (
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
        "'max_completion_tokens' instead."
    )
    assert one.adapt(0, one.body(request()), said)
    body = one.body(request(max_tokens=9))
    assert body["max_completion_tokens"] == 9
    assert "max_tokens" not in body


@pytest.mark.parametrize(
    "said",
    [
        "This model's maximum context length is 4096 tokens; you asked for 5000.",
        "'max_tokens' or 'max_completion_tokens' is too large: 160; not supported.",
        "temperature must be at most 1",
        "reset_seed is unknown",
    ],
)
def test_other_complaints_are_the_requests_own(said: str) -> None:
    one = dialect()
    assert one.adapt(0, one.body(request(temperature=0.5, schema=SCHEMA)), said) is None
