"""What an engine's own errors mean to the client."""

from __future__ import annotations

import pytest

from potstill.serve.upstream import refusal

NO_FORM = "The model produced output that does not match the expected peg-native format."


@pytest.mark.parametrize(
    ("status", "message", "wanted", "code"),
    [
        (500, NO_FORM, 400, "answer_without_form"),
        (500, "out of memory", 503, "engine_unavailable"),
        (400, "the request exceeds the available context size", 400, "context_length_exceeded"),
        (400, "no such sampler", 400, "refused_by_engine"),
        (429, "too many", 429, "engine_busy"),
    ],
)
def test_an_engines_error_is_the_clients_only_where_it_is(
    status: int, message: str, wanted: int, code: str
) -> None:
    found = refusal(status, {"error": {"message": message, "type": "server_error"}})
    assert (found.status, found.code) == (wanted, code)
    assert (found.retry_after is not None) == (wanted in (429, 503))
