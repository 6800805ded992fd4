"""The OpenAPI document of the service, made true: what each route answers, and what it refuses.

In: the document as the framework makes it, which knows the requests. Out: the same with the
responses, the error object at every status that a route may have, and the key. A route that is not
listed in RESPONSES answers a JSON object. `tests/integration/test_serve_openapi.py` holds the
running service to it. Knows no gateway.
"""

from __future__ import annotations

from typing import Any

from potstill.serve.openapi_schemas import SCHEMAS

TEXT = {"text/plain": {"schema": {"type": "string"}}}
HTML = {"text/html": {"schema": {"type": "string"}}}
# Each event is a chunk in the form of OpenAI's streams, but for the last, which is [DONE].
STREAM: dict[str, Any] = {"text/event-stream": {"schema": {"description": "Chunks, then [DONE]."}}}
BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
NO_KEY = ("/health", "/ready", "/openapi.json")

ERRORS = {
    "400": "The request cannot be taken as it is; `code` says why.",
    "401": "The key is missing, unknown or revoked.",
    "403": "The key has not the scope, or the server is not called so.",
    "404": "There is no such thing.",
    "408": "It took too long to send, or to answer.",
    "413": "It is too large.",
    "415": "The content type is another one.",
    "429": "Too much at once, or in this minute; `Retry-After` says when to come back.",
    "503": "The engine or the disk is not there now; `Retry-After` says when to come back.",
}


def _json(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}


RESPONSES: dict[tuple[str, str], dict[str, Any]] = {
    ("get", "/health"): _json("Health"),
    ("get", "/ready"): _json("Ready"),
    ("get", "/metrics"): TEXT,
    ("get", "/drift"): HTML,
    ("get", "/v1/models"): _json("Models"),
    ("get", "/v1/models/{model}"): _json("Model"),
    ("post", "/v1/chat/completions"): _json("ChatCompletion") | STREAM,
    ("post", "/v1/completions"): _json("Completion") | STREAM,
    ("post", "/v1/embeddings"): _json("Embeddings"),
    ("post", "/v1/qa"): _json("QaAnswer"),
    ("post", "/v1/feedback"): _json("FeedbackTaken"),
    ("get", "/v1/documents"): _json("Documents"),
    ("post", "/v1/documents"): _json("Document"),
    ("get", "/v1/documents/{document}"): _json("Document"),
    ("delete", "/v1/documents/{document}"): _json("DocumentDeleted"),
}


def described(
    document: dict[str, Any], keyed: bool, models: list[str], encoder: str | None
) -> dict[str, Any]:
    """The document, with what the framework does not know. keyed: whether requests need a key.
    models: the names under which the student can be asked; encoder: that of embeddings."""
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):  # the error object is another one
        schemas.pop(name, None)
    schemas |= SCHEMAS
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            _describe(operation, method, path, keyed)
    named = dict.fromkeys(("ChatRequest", "CompletionRequest", "QaRequest"), models)
    for name, known in (named | {"EmbeddingRequest": [encoder] if encoder else []}).items():
        if known and name in schemas:
            schemas[name]["properties"]["model"] = {"type": "string", "enum": known}
    if keyed:
        document["components"]["securitySchemes"] = {
            "key": {"type": "http", "scheme": "bearer", "description": "potstill keys add NAME"}
        }
        document["security"] = [{"key": []}]
    return document


def _describe(operation: dict[str, Any], method: str, path: str, keyed: bool) -> None:
    responses = operation["responses"]
    responses.pop("422", None)
    if content := RESPONSES.get((method, path)):
        responses["200"]["content"] = content
    if (method, path) == ("post", "/v1/documents"):
        operation["requestBody"] = {"required": True, "content": BINARY}
    if (method, path) == ("get", "/ready"):
        responses["503"] = {"description": "Not now.", "content": _json("Ready")}
    for status in _errors(operation, method, path, keyed):
        answer: dict[str, Any] = {"description": ERRORS[status], "content": _json("Error")}
        if status in ("429", "503"):
            seconds = {"schema": {"type": "integer", "minimum": 1}, "description": "In seconds."}
            answer["headers"] = {"Retry-After": seconds}
        responses.setdefault(status, answer)
    if keyed and path in NO_KEY:
        operation["security"] = []


def _errors(operation: dict[str, Any], method: str, path: str, keyed: bool) -> list[str]:
    if path in NO_KEY:
        return [] if keyed else ["403"]
    found = ["401", "403", "503"] if keyed else ["403", "503"]
    if operation.get("parameters") or path == "/drift":
        found += ["400", "404"]
    if method == "post":
        found += ["400", "404", "408", "413", "415", "429"]
    return sorted(set(found))
