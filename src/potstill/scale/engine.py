"""A teacher on a worker: opened once, then asked for batches until the run lets it go.

In: how to open a model, batches of requests, and more of them while it answers. Out: every reply
into the ledger as soon as it is there, and at the end what went wrong, as plain values. An actor of
Ray with two threads: one answers, the other takes more. Knows no stage.
"""

from __future__ import annotations

import threading
from collections import deque
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


class Stock:
    """Requests that a worker was given and has not begun. What reads it to its end closes it."""

    def __init__(self, batch: Sequence[Numbered]) -> None:
        self._waiting = deque(batch)
        self._open = True
        self._lock = threading.Lock()
        self.begun: list[int] = []
        """Numbers of those that were read, in their order."""

    def add(self, batch: Sequence[Numbered]) -> bool:
        """Whether they will be read; if not, nothing was added."""
        with self._lock:
            if self._open:
                self._waiting.extend(batch)
            return self._open

    def close(self) -> None:
        """Nothing more is read."""
        with self._lock:
            self._open = False

    def __iter__(self) -> Iterator[Request]:
        return self

    def __next__(self) -> Request:
        with self._lock:
            if not self._open or not self._waiting:
                self._open = False
                raise StopIteration
            number, fields = self._waiting.popleft()
            self.begun.append(number)
        return request_of(fields)


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
        self._stock: Stock | None = None
        self._stack = ExitStack()

    def answer(self, batch: Sequence[Numbered]) -> dict[str, str] | None:
        """Answer what nobody has answered yet, and what comes on the way. None, or the error that
        ended it."""
        import ray

        stock = self._stock = Stock(self._fresh(batch))
        try:
            model = self._open()
            written = None
            for place, reply in model.complete(stock):
                written = self.ledger.put.remote(stock.begun[place], asdict(reply))
            if written is not None:
                ray.get(written)  # calls of one actor arrive in their order
        except PotstillError as error:
            return error.as_dict
        except ModuleNotFoundError as error:
            found = missing(error, "A worker's teacher")
            if found is None:
                raise
            return found.as_dict
        finally:
            stock.close()
        return None

    def more(self, batch: Sequence[Numbered]) -> bool:
        """More for the `answer` that is under way, so that it never has less to do than it could.
        False: it is at its end, and these are not asked."""
        stock = self._stock
        return stock is not None and stock.add(self._fresh(batch))

    def _fresh(self, batch: Sequence[Numbered]) -> list[Numbered]:
        """What nobody has answered, perhaps a worker that died since."""
        import ray

        done = set(ray.get(self.ledger.known.remote([number for number, _ in batch])))
        return [one for one in batch if one[0] not in done]

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
