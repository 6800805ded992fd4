"""Open a model by its reference, behind the port of `base.py`.

In: a model reference and the name of a backend. Out: a TextModel inside `with`.
Chooses llama.cpp for what is a GGUF file, the client for openai:MODEL, a plug-in for plugin:NAME,
and transformers for the rest; vLLM where it is asked for. Knows no engine's details; the engines
are imported only when they are opened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal, Protocol, TypedDict, Unpack

from potstill.core.extras import installed_version
from potstill.errors import ModelError
from potstill.inference.base import LocalBackend, TextModel
from potstill.inference.endpoint import EndpointConfig, is_endpoint, mismatch, model_name
from potstill.inference.teacher_plugins import is_plugin, open_plugin, plugin_identity
from potstill.models.refs import digest, gguf_file, parse

Backend = LocalBackend | Literal["openai", "plugin"]


def resolve_backend(reference: str, backend: Backend = "auto") -> Backend:
    """The engine that `auto` stands for: llama.cpp for a GGUF, transformers for a folder or hub,
    the client for openai:MODEL, a plug-in for plugin:NAME.

    Errors: ModelError if llama.cpp is asked for a model that is not a GGUF.
    """
    if backend == "fake":
        return backend
    if is_plugin(reference):
        return "plugin"
    if backend in ("transformers", "vllm"):
        return backend
    if is_endpoint(reference):
        return "openai"
    is_gguf = parse(reference).kind in {"gguf", "pypi"}
    if backend == "llamacpp" and not is_gguf:
        raise ModelError(
            f"The backend llamacpp cannot run {reference}: it is not a GGUF file.",
            "Set backend to transformers or auto, or name a .gguf file.",
        )
    return "llamacpp" if is_gguf else "transformers"


def engine_identity(
    reference: str, backend: Backend = "auto", endpoint: EndpointConfig | None = None
) -> str:
    """Digest of the model and name and version of the engine: what replies depend on."""
    chosen = resolve_backend(reference, backend)
    if chosen == "fake":
        return "fake 1"
    if chosen == "plugin":
        return plugin_identity(reference)
    if chosen == "openai":
        return _addressed(reference, endpoint).identity(model_name(reference))
    if chosen == "vllm":
        from potstill.inference.vllm import version

        return f"{digest(parse(reference))} vllm {version()}"
    package = {"llamacpp": "xllamacpp", "transformers": "transformers"}[chosen]
    return f"{digest(parse(reference))} {package} {installed_version(package)}"


class Options(TypedDict, total=False):
    """What `open_model` is told beside the model."""

    threads: int
    parallel: int
    context_tokens: int
    endpoint: EndpointConfig | None
    warn: Callable[[str], None]


class Opening(Protocol):
    """A way to open a model for text: `open_model`, or one that opens it elsewhere."""

    def __call__(
        self, reference: str, backend: Backend = "auto", **options: Unpack[Options]
    ) -> AbstractContextManager[TextModel]:
        """As `open_model`."""
        ...


@contextmanager
def open_model(
    reference: str,
    backend: Backend = "auto",
    *,
    threads: int = 1,
    parallel: int = 1,
    context_tokens: int = 2048,
    endpoint: EndpointConfig | None = None,
    warn: Callable[[str], None] = lambda message: None,
) -> Iterator[TextModel]:
    """Open a model for text.

    threads: processor threads. parallel: requests answered at once. context_tokens: longest
    prompt and reply together. endpoint: where openai:MODEL is, with limits of its own for how much
    at once. warn: is told what a user should know though work goes on.
    Errors: ModelError, MissingExtraError.
    """
    chosen = resolve_backend(reference, backend)
    model: TextModel
    if chosen == "fake":
        from potstill.inference.fake import FakeModel

        model = FakeModel()
    elif chosen == "plugin":
        model = open_plugin(
            reference, threads=threads, parallel=parallel, context_tokens=context_tokens
        )
    elif chosen == "openai":
        from potstill.inference.openai import EndpointModel

        model = EndpointModel(_addressed(reference, endpoint), model_name(reference), warn)
    elif chosen == "llamacpp":
        from potstill.inference.llamacpp import LlamaCppModel

        path = gguf_file(parse(reference))
        assert path is not None  # resolve_backend has refused everything else
        model = LlamaCppModel(
            path, threads=threads, parallel=parallel, context_tokens=context_tokens
        )
    elif chosen == "vllm":
        from potstill.inference.vllm import VllmModel

        model = VllmModel(
            reference, threads=threads, parallel=parallel, context_tokens=context_tokens, warn=warn
        )
    else:
        from potstill.inference.transformers import TransformersModel

        model = TransformersModel(
            reference, threads=threads, parallel=parallel, context_tokens=context_tokens
        )
    try:
        yield model
    finally:
        model.close()


def _addressed(reference: str, endpoint: EndpointConfig | None) -> EndpointConfig:
    if endpoint is None:
        problem = mismatch(reference, None, "auto") or ""
        raise ModelError(f"{problem[:1].upper()}{problem[1:]}.")
    return endpoint
