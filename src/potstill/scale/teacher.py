"""A teacher that is many: the port of `inference/base.py` in front of engines on workers.

In: requests. Out: replies as they come, each once. Hands batches to whichever engine is free, large
ones first and small ones last, so that none waits long for another; takes back what a dead worker
had not answered and gives it to the next. Does not know what is asked.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Unpack

from potstill.errors import ModelError, PotstillError, error_from
from potstill.inference.base import Reply, Request, TextModel
from potstill.inference.endpoint import EndpointConfig, is_endpoint
from potstill.inference.open import Backend, Opening, Options, engine_identity
from potstill.scale.cluster import Cluster, gone
from potstill.scale.engine import Engine, Numbered, fields_of
from potstill.scale.keys import KeyDesk, variables_here

LOOK_SECONDS = 0.1
LARGEST_BATCH = 8  # times what an engine answers at once
LOSSES = 5  # of one request with the worker that had it: it is not chance


class RayModel:
    """A TextModel on all workers of a cluster. parallel: requests that one worker runs at once."""

    def __init__(
        self,
        cluster: Cluster,
        opening: dict[str, Any],
        endpoint: EndpointConfig | None,
        parallel: int,
        warn: Callable[[str], None],
    ) -> None:
        self.cluster, self.parallel, self._warn = cluster, parallel, warn
        self._told: set[str] = set()
        self._numbers = 0
        self._losses: Counter[int] = Counter()
        self._keys: Any = None
        ray, variables = cluster.ray, []
        if endpoint is not None:
            variables = variables_here(endpoint)
            desk = ray.remote(KeyDesk).options(num_cpus=0)
            self._keys = desk.remote(endpoint.model_dump(mode="json"), variables)
        # Not Ray's own restarts: those need the first arguments to be where they were.
        engine = ray.remote(Engine).options(num_cpus=cluster.place.threads, max_restarts=0)
        self._begin: Callable[[int], Any] = lambda name: engine.remote(
            name, opening, cluster.ledger, self._keys, variables
        )
        self._engines = {name: self._begin(name) for name in range(cluster.workers)}

    def complete(self, requests: Iterable[Request]) -> Iterator[tuple[int, Reply]]:
        """Replies as they come. Errors: the engine's own; PotstillError if workers die again and
        again."""
        source = iter(enumerate(requests))
        pile: deque[Numbered] = deque()
        positions: dict[int, int] = {}  # of what is not answered yet, by number
        running: dict[Any, tuple[int, list[Numbered]]] = {}
        free = deque(self._engines)
        try:
            while True:
                self._fill(pile, source, positions)
                while free and pile:
                    batch = self._batch(pile, len(free))
                    name = free.popleft()
                    running[self._engines[name].answer.remote(batch)] = (name, batch)
                if not running:
                    return
                ended, _ = self.cluster.ray.wait(list(running), timeout=LOOK_SECONDS)
                yield from self._replies(positions)  # after the wait: all that is of ended batches
                for call in ended:
                    name, batch = running.pop(call)
                    if (problem := self._end(call)) is not None:
                        self._engines[name] = self._begin(name)
                    free.append(name)
                    lost = [one for one in batch if one[0] in positions]
                    self._count_losses(lost, problem)
                    pile.extendleft(reversed(lost))
        finally:
            if running:
                self.close()

    def stream(self, request: Request) -> Iterator[str]:
        """In one piece: the reply comes from another process."""
        for _, reply in self.complete([request]):
            yield reply.text

    def count_tokens(self, text: str) -> int:
        """Errors: ModelError always: the tokenizer is on the workers."""
        raise ModelError("Tokens are not counted where the teacher runs on a cluster.")

    def token_ids(self, text: str, special: bool = False) -> list[int]:
        """Errors: ModelError always: the tokenizer is on the workers."""
        raise ModelError("Tokens are not known where the teacher runs on a cluster.")

    def close(self) -> None:
        """Give the workers back."""
        actors = [*self._engines.values(), *([self._keys] if self._keys is not None else [])]
        self._engines, self._keys = {}, None
        for actor in actors:
            with suppress(Exception):  # one that is dead already cannot be ended
                self.cluster.ray.kill(actor)

    def _fill(
        self,
        pile: deque[Numbered],
        source: Iterator[tuple[int, Request]],
        positions: dict[int, int],
    ) -> None:
        """Read ahead so far that every worker can have full batches. A number is given once, so
        that a late reply is nobody else's."""
        while len(pile) < 2 * self.parallel * LARGEST_BATCH * len(self._engines):
            item = next(source, None)
            if item is None:
                return
            self._numbers += 1
            positions[self._numbers] = item[0]
            pile.append((self._numbers, fields_of(item[1])))

    def _batch(self, pile: deque[Numbered], free: int) -> list[Numbered]:
        """What one engine gets next: half of its share of what is left, within reason, so that all
        end together; but as much as it answers at once, unless others that are free would get
        nothing. One that is alone gets all: at each batch's end it has less to do than it could."""
        if len(self._engines) == 1:
            return [pile.popleft() for _ in range(len(pile))]
        least = min(self.parallel, -(-len(pile) // free))
        half = len(pile) // (2 * len(self._engines))
        size = max(least, min(self.parallel * LARGEST_BATCH, half))
        return [pile.popleft() for _ in range(size)]

    def _replies(self, positions: dict[int, int]) -> Iterator[tuple[int, Reply]]:
        try:
            found, notes = self.cluster.take()
        except Exception as error:  # whatever Ray raises of a cluster that is gone
            raise gone(self.cluster.place, error) from error
        for text in notes:
            if text not in self._told:
                self._told.add(text)
                self._warn(text)
        for number, fields in found:
            if number in positions:
                yield positions.pop(number), Reply(**fields)

    def _end(self, call: Any) -> Exception | None:
        """A batch has ended: how, if its worker died.

        Errors: what the engine said.
        """
        ray = self.cluster.ray
        try:
            failed = ray.get(call)
        except ray.exceptions.RayActorError as error:
            died: Exception = error
            return died
        except Exception as error:
            raise gone(self.cluster.place, error) from error
        if failed is not None:
            raise error_from(failed)
        return None

    def _count_losses(self, lost: list[Numbered], problem: Exception | None) -> None:
        """Errors: PotstillError if a request was lost with every worker that had it."""
        if lost:
            self._warn(f"A worker was lost; {len(lost)} requests that it had are asked again.")
        for number, _ in lost:
            self._losses[number] += 1
            if self._losses[number] >= LOSSES:
                error = problem or PotstillError("a request is never answered")
                raise gone(self.cluster.place, error) from problem


def open_on(cluster: Cluster, parallel: int) -> Opening:
    """A way to open teachers on the workers. parallel: requests that one of them runs at once."""

    @contextmanager
    def open_there(
        reference: str, backend: Backend = "auto", **options: Unpack[Options]
    ) -> Iterator[TextModel]:
        endpoint, warn = options.get("endpoint"), options.get("warn", lambda message: None)
        addressed = endpoint if is_endpoint(reference) and backend != "fake" else None
        together = parallel
        if addressed is not None:  # its keys say how many; no worker may have to wait for a batch
            most = sum(one.concurrency or 1 for one in addressed.limits)
            together = max(parallel, -(-most // cluster.workers))
        opening = {
            "reference": reference,
            "backend": backend,
            "threads": cluster.place.threads,
            "parallel": together,
            "context_tokens": options.get("context_tokens", 2048),
            "endpoint": addressed.model_dump(mode="json") if addressed else None,
            "identity": engine_identity(reference, backend, addressed),
        }
        model = RayModel(cluster, opening, addressed, together, warn)
        try:
            yield model
        finally:
            model.close()

    return open_there
