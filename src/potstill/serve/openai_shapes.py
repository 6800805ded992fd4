"""The engine's events as the client sees them: one object, or a stream of chunks.

In: work and its events. Out: OpenAI's shapes, with the response's own id and the model's own name;
`citations` beside them where passages were looked for. Pure. Knows no HTTP.
"""

from __future__ import annotations

import json
from typing import Any

from potstill.serve.answering import Work


def event_of(work: Work, event: dict[str, Any]) -> str:
    """One chunk as a server-sent event; "" for one that only counts tokens. The chunk that ends
    the answer carries the citations."""
    if not event["choices"]:
        return ""
    choices = [_choice(work, one) for one in event["choices"]]
    chunk = _head(work, chunk=True) | {"choices": choices}
    if choices[0].get("finish_reason") and work.citations is not None:
        chunk["citations"] = work.citations
    return f"data: {json.dumps(chunk, ensure_ascii=False, separators=(',', ':'))}\n\n"


def done(work: Work, wants_usage: bool) -> str:
    """How a stream ends."""
    end = "data: [DONE]\n\n"
    if not wants_usage:
        return end
    chunk = _head(work, chunk=True) | {"choices": [], "usage": work.usage}
    return f"data: {json.dumps(chunk)}\n\n{end}"


def whole(work: Work, events: list[dict[str, Any]]) -> dict[str, Any]:
    """All events as one object."""
    choices = [_choice(work, one) for event in events for one in event["choices"]]
    finish = next((one["finish_reason"] for one in choices if one.get("finish_reason")), "stop")
    choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
    logprobs = _joined([one["logprobs"] for one in choices if one.get("logprobs")])
    if work.kind == "chat.completion":
        thoughts = "".join(
            (one.get("delta") or {}).get("reasoning_content") or "" for one in choices
        )
        message: dict[str, Any] = {"role": "assistant", "content": work.answer}
        if thoughts:
            message["reasoning_content"] = thoughts
        choice |= {"message": message, "logprobs": logprobs}
    else:
        choice |= {"text": work.answer, "logprobs": logprobs}
    body = _head(work, chunk=False) | {"choices": [choice], "usage": work.usage}
    if work.citations is not None:
        body["citations"] = work.citations
    return body


def _head(work: Work, chunk: bool) -> dict[str, Any]:
    kind = "chat.completion.chunk" if chunk and work.kind == "chat.completion" else work.kind
    return {"id": work.id, "object": kind, "created": work.created, "model": work.model}


def _choice(work: Work, choice: dict[str, Any]) -> dict[str, Any]:
    """A choice in the form of its kind: plain completions have another one for logprobs."""
    logprobs = choice.get("logprobs")
    if work.kind == "text_completion" and logprobs and "content" in logprobs:
        return choice | {"logprobs": _plain(logprobs["content"])}
    return choice


def _plain(content: list[dict[str, Any]]) -> dict[str, Any]:
    """Chat's logprobs in the older form of plain completions."""
    return {
        "tokens": [one["token"] for one in content],
        "token_logprobs": [one["logprob"] for one in content],
        "top_logprobs": [
            {top["token"]: top["logprob"] for top in one.get("top_logprobs", [])} for one in content
        ],
    }


def _joined(parts: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Logprobs of all chunks, list by list."""
    if not parts:
        return None
    joined: dict[str, Any] = {}
    for part in parts:
        for name, values in part.items():
            if isinstance(values, list):
                joined.setdefault(name, []).extend(values)
    return joined
