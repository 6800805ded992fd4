"""What the service answers, as JSON Schema: one object a response, for the OpenAPI document.

In: nothing. Out: SCHEMAS, by name. Fields that are listed are always there. Knows no route.
"""

from __future__ import annotations

from typing import Any

TEXT = {"type": "string"}
COUNT = {"type": "integer", "minimum": 0}
SHARE = {"type": "number", "minimum": 0, "maximum": 1}
PLACE = {"type": ["integer", "null"], "minimum": 0}
YES = {"type": "boolean"}


def _object(fields: dict[str, Any], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    needed = [name for name in fields if name not in optional]
    return {"type": "object", "properties": fields, "required": needed}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _named(name: str) -> dict[str, Any]:
    return {"type": "string", "const": name}


def _answer(kind: str, choice: dict[str, Any]) -> dict[str, Any]:
    return _object(
        {
            "id": TEXT,
            "object": _named(kind),
            "created": COUNT,
            "model": TEXT,
            "choices": _list(choice),
            "usage": _ref("Usage"),
            "citations": _list(_ref("Citation")),
        },
        ("citations",),
    )


FINISH = {"type": "string", "enum": ["stop", "length", "content_filter"]}
LOGPROBS = {"type": ["object", "null"]}
MESSAGE = _object(
    {"role": _named("assistant"), "content": TEXT, "reasoning_content": TEXT},
    ("reasoning_content",),
)
VECTOR = {"oneOf": [_list({"type": "number"}), {"type": "string", "format": "byte"}]}

SCHEMAS: dict[str, dict[str, Any]] = {
    "Error": _object(
        {
            "error": _object(
                {
                    "message": {"type": "string", "minLength": 1},
                    "type": TEXT,
                    "param": {"type": ["string", "null"]},
                    "code": {"type": ["string", "null"]},
                }
            )
        }
    ),
    "Health": _object({"status": _named("ok")}),
    "Ready": _object({"ready": YES, "engine": YES}),
    "Model": _object({"id": TEXT, "object": _named("model"), "created": COUNT, "owned_by": TEXT}),
    "Models": _object({"object": _named("list"), "data": _list(_ref("Model"))}),
    "Usage": _object(
        {"prompt_tokens": COUNT, "completion_tokens": COUNT, "total_tokens": COUNT},
        ("completion_tokens",),
    ),
    "Citation": _object(
        {
            "source": TEXT,
            "pages": _list({"type": "integer"}),
            "document": TEXT,
            "chunk": TEXT,
            "start": COUNT,
            "end": COUNT,
            "answer_start": PLACE,
            "answer_end": PLACE,
            "text": TEXT,
        }
    ),
    "ChatCompletion": _answer(
        "chat.completion",
        _object(
            {"index": COUNT, "finish_reason": FINISH, "message": MESSAGE, "logprobs": LOGPROBS}
        ),
    ),
    "Completion": _answer(
        "text_completion",
        _object({"index": COUNT, "finish_reason": FINISH, "text": TEXT, "logprobs": LOGPROBS}),
    ),
    "Embeddings": _object(
        {
            "object": _named("list"),
            "data": _list(
                _object({"object": _named("embedding"), "index": COUNT, "embedding": VECTOR})
            ),
            "model": TEXT,
            "usage": _ref("Usage"),
        }
    ),
    "QaAnswer": _object(
        {
            "id": TEXT,
            "object": _named("qa.answer"),
            "created": COUNT,
            "model": TEXT,
            "answer": {"type": "string", "description": "Empty: the passages do not answer."},
            "score": SHARE,
            "start": PLACE,
            "end": PLACE,
            "no_answer": SHARE,
            "citations": _list(_ref("Citation")),
            "usage": _ref("Usage"),
        }
    ),
    "FeedbackTaken": _object({"id": TEXT, "object": _named("feedback"), "response": TEXT}),
    "Document": _object(
        {"id": TEXT, "object": _named("document"), "name": TEXT, "passages": COUNT, "new": YES}
    ),
    "Documents": _object({"object": _named("list"), "data": _list(_ref("Document"))}),
    "DocumentDeleted": _object(
        {"id": TEXT, "object": _named("document.deleted"), "deleted": {"type": "boolean"}}
    ),
}
