"""A teacher on a worker: opened once, then asked for batches until the run lets it go.

In: how to open a model, batches of requests. Out: every reply into the ledger as soon as it is
there, and at a batch's end what went wrong, as plain values. An actor of Ray. Knows no stage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from potstill.core.extras import missing
from potstill.errors import ModelError, PotstillError
from potstill.inference.base import Request, TextModel
from potstill.inference.endpoint import EndpointConfig, is_endpoint, model_name
from potstill.inference.open import engine_identity, open_model
from potstill.records import Turn
from potstill.scale.keys import open_shared_pool

Numbered = tuple[int, Mapping[str, Any]]


class Engine:
    """name: of this worker, the same when it begins again after a death. opening: reference,
    backend, endpoint, threads, parallel, context_tokens, and the identity that replies must have.
    keys: the actor that lends the keys in `variables`, or None."""

    def __init__(
        self, name: int, opening: Mapping[str, Any], ledger: Any, keys: Any, variables: list[str]
    ) -> None:
        self.name, self.opening, self.ledger = name, opening, ledger
        self.keys, self.variables = keys, variables
        self._model: TextModel | None = None
        self._stack = ExitStack()

    def answer(self, batch: Sequence[Numbered]) -> dict[str, str] | None:
        """Answer what nobody has answered yet. None, or the error that ended it."""
        import ray

        try:
            model = self._open()
            done = set(ray.get(self.ledger.known.remote([number for number, _ in batch])))
            fresh = [one for one in batch if one[0] not in done]
            written = None
            for place, reply in model.complete(self._requests(fresh)):
                written = self.ledger.put.remote(fresh[place][0], asdict(reply))
            if written is not None:
                ray.get(written)  # calls of one actor arrive in their order
        except PotstillError as error:
            return error.as_dict
        except ModuleNotFoundError as error:
            found = missing(error, "A worker's teacher")
            if found is None:
                raise
            return found.as_dict
        return None

    def _requests(self, batch: Sequence[Numbered]) -> Iterator[Request]:
        return (request_of(fields) for _, fields in batch)

    def _open(self) -> TextModel:
        if self._model is None:
            how = dict(self.opening)
            endpoint = how["endpoint"] and EndpointConfig.model_validate(how["endpoint"])
            self._check_identity(how["reference"], how["backend"], endpoint, how["identity"])
            if endpoint is not None and is_endpoint(how["reference"]) and how["backend"] != "fake":
                self._model = self._shared(endpoint, how["reference"])
            else:
                opened = open_model(
                    how["reference"],
                    how["backend"],
                    threads=how["threads"],
                    parallel=how["parallel"],
                    context_tokens=how["context_tokens"],
                    endpoint=endpoint,
                    warn=self._warn,
                )
                self._model = self._stack.enter_context(opened)
        return self._model

    def _shared(self, endpoint: EndpointConfig, reference: str) -> TextModel:
        """The client, with keys that are lent to it."""
        from potstill.inference.openai import EndpointModel

        desk = _Actor(self.keys)
        pool = open_shared_pool(endpoint, self.variables, self.name, self._warn, desk)
        return EndpointModel(endpoint, model_name(reference), self._warn, pool)

    def _warn(self, text: str) -> None:
        self.ledger.note.remote(text)

    def _check_identity(
        self, reference: str, backend: Any, endpoint: EndpointConfig | None, wanted: str
    ) -> None:
        found = engine_identity(reference, backend, endpoint)
        if found != wanted:
            raise ModelError(
                f"A worker's teacher {reference} is not the run's: it has {found[:40]}, and the "
                f"run {wanted[:40]} (the model's digest, then the engine's version).",
                "Install the same versions on every node, and the same model at the same path, or "
                "name the model by a package or the hub.",
            )


class _Actor:
    """Calls an actor of Ray."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def ask(self, method: str, *arguments: Any) -> Any:
        """Call a method and wait for what it returns."""
        import ray

        return ray.get(getattr(self.actor, method).remote(*arguments))

    def say(self, method: str, *arguments: Any) -> None:
        """Call a method and do not wait."""
        getattr(self.actor, method).remote(*arguments)


def fields_of(request: Request) -> dict[str, Any]:
    """A request as plain values."""
    turns = [turn.model_dump(mode="json") for turn in request.messages]
    return {
        "messages": turns,
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "seed": request.seed,
        "schema": request.schema,
        "stop": list(request.stop),
    }


def request_of(fields: Mapping[str, Any]) -> Request:
    """The request again."""
    turns = tuple(Turn.model_validate(one) for one in fields["messages"])
    return Request(**{**fields, "messages": turns, "stop": tuple(fields["stop"])})
