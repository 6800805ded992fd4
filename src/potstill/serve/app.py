"""The application: all routes over one gateway, behind the guard, every error an error object.

In: a gateway. Out: an ASGI application.
Knows no port and no process.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.routing import Match
from starlette.types import ASGIApp, Scope

from potstill import __version__
from potstill.core.files import disk_errors
from potstill.errors import InputError, PotstillError
from potstill.serve.drift_page import POLICY, page
from potstill.serve.gateway import Gateway
from potstill.serve.guard import Guard
from potstill.serve.openai_api import key_of, routes
from potstill.serve.openapi_document import described
from potstill.serve.problems import ApiError, invalid, unavailable
from potstill.serve.qa import qa_routes
from potstill.serve.report import summary
from potstill.serve.wire import FeedbackRequest

LONGEST_NAME = 200
METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")


def application(gateway: Gateway) -> ASGIApp:
    """The service as an ASGI application. The engine is started and stopped by `server.py`."""
    app = FastAPI(
        title=f"{gateway.name} by Potstill",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # to the address that the client believes in; it is told nothing
    )
    app.include_router(routes(gateway))
    app.include_router(qa_routes(gateway))
    _own_routes(app, gateway)
    _error_objects(app)
    _document(app, gateway)
    guarded: ASGIApp = Guard(app, gateway, lambda scope: _takes(app, scope, scope["method"]))
    if gateway.config.cors:
        guarded = CORSMiddleware(
            guarded,
            allow_origins=gateway.config.cors,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type"],
        )
    return guarded


def _document(app: FastAPI, gateway: Gateway) -> None:
    made = app.openapi
    keyed, encoder = gateway.keys is not None, gateway.embedding_model

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = described(made(), keyed, gateway.models, encoder)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _takes(app: FastAPI, scope: Scope, method: str) -> bool:
    """Whether the path of a request takes a method, by whichever route."""
    asked = {**scope, "method": method}
    return any(one.matches(asked)[0] == Match.FULL for one in app.routes)


def _own_routes(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the process lives."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> Response:
        """Whether a request would be answered now: 200, else 503."""
        state = {"ready": gateway.ready, "engine": gateway.engine.ready}
        return JSONResponse(state, 200 if gateway.ready else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """All figures in Prometheus's text format."""
        return Response(gateway.figures.text(), media_type=gateway.figures.content_type)

    @app.get("/drift")
    async def drift() -> Response:
        """The page about drift."""
        if gateway.traffic is None:
            raise ApiError(404, "This server keeps no traffic.", "not_found")
        text = await asyncio.to_thread(_drift_page, gateway)
        return Response(text, media_type="text/html", headers={"content-security-policy": POLICY})

    @app.post("/v1/feedback")
    async def feedback(said: FeedbackRequest, request: Request) -> dict[str, Any]:
        """Say what an answer was worth; acknowledged once it is on the disk."""
        key = key_of(request)
        answered = gateway.memory.find(said.response, key.id)
        identity = await asyncio.to_thread(
            gateway.feedback.add,
            key=key.id,
            model=answered.model,
            messages=answered.messages,
            answer=answered.answer,
            citations=answered.citations,
            variant=answered.variant,
            **said.model_dump(),
        )
        gateway.figures.variant_feedback.labels(answered.variant, said.thumb or "none").inc()
        await asyncio.to_thread(
            gateway.audit,
            "feedback",
            key=key.id,
            feedback=identity,
            response=said.response,
            variant=answered.variant,
        )
        return {"id": identity, "object": "feedback", "response": said.response}

    @app.get("/v1/documents")
    async def documents() -> dict[str, Any]:
        """The documents that were added."""
        rows = [] if gateway.corpus is None else gateway.corpus.documents
        return {"object": "list", "data": [one.as_dict for one in rows]}

    @app.post("/v1/documents")
    async def add_document(name: str, request: Request) -> dict[str, Any]:
        """Add a document, the body, of that name; its passages can be found afterwards."""
        if gateway.corpus is None:
            raise ApiError(404, "This server answers from no documents.", "no_documents")
        kept = PurePosixPath(name.replace("\\", "/")).name
        if not kept or len(name) > LONGEST_NAME or not kept.isprintable() or kept[0] == ".":
            raise invalid("The name has to be a file's name, such as handbook.pdf.", "name")
        with tempfile.TemporaryDirectory(dir=_uploads(gateway)) as folder:
            file = Path(folder) / f"document{PurePosixPath(kept).suffix.lower()}"
            await _receive(request, file, gateway)
            try:
                added = await gateway.corpus.add(file, kept)
            except InputError as error:
                raise invalid(str(error), "name", "unusable_document") from error
        gateway.audit("document", key=key_of(request).id, **added.as_dict)
        return added.as_dict

    @app.get("/v1/documents/{document}")
    async def one_document(document: str) -> dict[str, Any]:
        """A document that was added."""
        found = gateway.corpus.document(document) if gateway.corpus else None
        if found is None:
            raise _no_document(document)
        return found.as_dict

    @app.delete("/v1/documents/{document}")
    async def remove_document(document: str, request: Request) -> dict[str, Any]:
        """Take a document that was added away: it is found no more."""
        removed = await gateway.corpus.remove(document) if gateway.corpus else None
        if removed is None:
            raise _no_document(document)
        told = {"id": removed.id, "object": "document.deleted", "deleted": True}
        gateway.audit("document_removed", key=key_of(request).id, name=removed.name, id=removed.id)
        return told


def _no_document(document: str) -> ApiError:
    return ApiError(
        404,
        f"There is no added document {document[:64]}; a run's own documents stay.",
        "document_not_found",
        "document",
    )


def _drift_page(gateway: Gateway) -> str:
    assert gateway.traffic is not None
    return page(summary(gateway.name, gateway.traffic.store, gateway.traffic.off))


def _uploads(gateway: Gateway) -> Path:
    folder = gateway.folder / "uploads"
    with disk_errors(folder, "create"):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


async def _receive(request: Request, file: Path, gateway: Gateway) -> None:
    """The body, into a file. Errors: ApiError if it is too large or too slow."""
    limit, size = gateway.config.document_bytes, 0
    chunks = request.stream()
    with disk_errors(file, "write"), file.open("wb") as out:
        while True:
            try:
                async with asyncio.timeout(gateway.config.body_seconds):
                    part = await anext(chunks, None)
            except ClientDisconnect as error:
                raise ApiError(400, "The request ended early.", "incomplete") from error
            except TimeoutError as error:
                raise ApiError(408, "The document came too slowly.", "slow_request") from error
            if part is None:
                break
            size += len(part)
            if size > limit:
                raise ApiError(413, f"The document is larger than {limit} bytes.", "too_large")
            out.write(part)
    if not size:
        raise invalid("The document is empty.", "name", "unusable_document")


def _error_objects(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return response_of(error)

    @app.exception_handler(RequestValidationError)
    async def not_valid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return response_of(validation_problem(error))

    @app.exception_handler(PotstillError)
    async def no_disk(_: Request, error: Exception) -> Response:
        return response_of(unavailable(str(error), "store_unavailable"))

    @app.exception_handler(Exception)
    async def unforeseen(_: Request, error: Exception) -> Response:  # the guard logs it
        return response_of(ApiError(500, "The server failed in a way nobody foresaw.", "failed"))

    @app.exception_handler(HTTPException)
    async def framework(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        words = {
            404: f"There is nothing at {request.url.path[:200]}.",
            405: f"{request.url.path[:200]} does not take {request.method}.",
            400: "The body cannot be read as JSON.",
        }
        code = {404: "not_found", 405: "method_not_allowed", 400: "invalid_json"}
        status, headers = error.status_code, dict(error.headers or {})
        if status == 405:  # the framework names the methods of the first route alone
            headers["Allow"] = ", ".join(one for one in METHODS if _takes(app, request.scope, one))
        problem = ApiError(status, words.get(status, str(error.detail)), code.get(status))
        return response_of(problem, headers)


def response_of(error: ApiError, headers: dict[str, str] | None = None) -> Response:
    """The error object. The guard reads the code from a header, which goes no further."""
    more = {"x-error": error.code or "", **error.headers, **(headers or {})}
    return JSONResponse(error.body, error.status, more)


def validation_problem(error: RequestValidationError) -> ApiError:
    """The first thing that is wrong, in one line."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][1:] if part != "body")
    if first["type"] == "json_invalid":
        return ApiError(400, "The body is not valid JSON.", "invalid_json")
    if first["type"] == "extra_forbidden":
        return invalid(
            f"Unknown or unsupported field: {place[:100]}.", place[:100], "unknown_field"
        )
    message = str(first["msg"]).removeprefix("Value error, ")
    where = f"{place[:100]}: " if place else ""
    return invalid(f"{where}{message[:300]}.", place[:100] or None)
