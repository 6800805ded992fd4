"""A teacher that is many: the port of `inference/base.py` in front of engines on workers.

In: requests. Out: replies as they come, each once. Hands batches to whichever engine has little
left, large ones first and small ones last, so that none waits long for another; takes back what a
dead worker had not answered and gives it to the next. Does not know what is asked.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Unpack

from potstill.errors import ModelError, PotstillError, error_from
from potstill.inference.base import Reply, Request, TextModel
from potstill.inference.endpoint import EndpointConfig, is_endpoint
from potstill.inference.open import Backend, Opening, Options, engine_identity, resolve_backend
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
        gpus: int = 0,
    ) -> None:
        """gpus: of each worker."""
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
        engine = ray.remote(Engine).options(
            num_cpus=cluster.place.threads,
            num_gpus=gpus,
            max_restarts=0,
            max_concurrency=2,
        )
        self._begin: Callable[[int], Any] = lambda name: engine.remote(
            name, opening, cluster.ledger, self._keys, variables
        )
        self._engines = {name: self._begin(name) for name in range(cluster.workers)}

    def complete(self, requests: Iterable[Request]) -> Iterator[tuple[int, Reply]]:
        """Replies as they come. Errors: the engine's own; PotstillError if workers die again and
        again."""
        source = iter(enumerate(requests))
        work = _Work()
        try:
            while True:
                self._fill(work, source)
                self._deal(work)
                if not work.answering and not work.adding:
                    return
                calls = [*work.answering, *work.adding]
                ended, _ = self.cluster.ray.wait(calls, timeout=LOOK_SECONDS)
                yield from self._replies(work)  # after the wait: all that is of ended batches
                for call in ended:
                    if call in work.answering:
                        self._end(work, call)
                    elif call in work.adding:  # not among what a dead worker had
                        self._added(work, call)
        finally:
            if work.answering:
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

    def _fill(self, work: _Work, source: Iterator[tuple[int, Request]]) -> None:
        """Read ahead so far that every worker can have full batches. A number is given once, so
        that a late reply is nobody else's."""
        while len(work.pile) < 2 * self.parallel * LARGEST_BATCH * len(self._engines):
            item = next(source, None)
            if item is None:
                return
            self._numbers += 1
            work.positions[self._numbers] = item[0]
            work.pile.append((self._numbers, fields_of(item[1])))

    def _deal(self, work: _Work) -> None:
        """Give those that have little to do, the idle ones first."""
        asked = {name for name, _ in work.adding.values()}
        busy = work.busy
        low = self.parallel * LARGEST_BATCH // 2
        hungry = [
            one
            for one in self._engines
            if one not in asked and one not in work.ending and work.held[one] <= low
        ]
        hungry.sort(key=lambda name: (name in busy, work.held[name]))
        for place, name in enumerate(hungry):
            if not work.pile:
                return
            batch = self._batch(work.pile, len(hungry) - place)
            engine = self._engines[name]
            if name in busy:
                work.adding[engine.more.remote(batch)] = (name, batch)
            else:
                work.answering[engine.answer.remote(batch)] = (name, batch)
            work.give(name, batch)

    def _batch(self, pile: deque[Numbered], free: int) -> list[Numbered]:
        """What one engine gets next: half of its share of what is left, within reason, so that all
        end together; but as much as it answers at once, unless others that have little would get
        nothing. One that is alone gets all."""
        if len(self._engines) == 1:
            return [pile.popleft() for _ in range(len(pile))]
        least = min(self.parallel, -(-len(pile) // free))
        half = len(pile) // (2 * len(self._engines))
        size = max(least, min(self.parallel * LARGEST_BATCH, half))
        return [pile.popleft() for _ in range(size)]

    def _replies(self, work: _Work) -> Iterator[tuple[int, Reply]]:
        try:
            found, notes = self.cluster.take()
        except Exception as error:  # whatever Ray raises of a cluster that is gone
            raise gone(self.cluster.place, error) from error
        for text in notes:
            if text not in self._told:
                self._told.add(text)
                self._warn(text)
        for number, fields in found:
            if number in work.positions:
                yield work.answered(number), Reply(**fields)

    def _end(self, work: _Work, call: Any) -> None:
        """An `answer` has ended. If its worker died, another begins, and what that had and what was
        on its way to it is asked again.

        Errors: what the engine said.
        """
        name, batch = work.answering.pop(call)
        work.ending.discard(name)
        failed, problem = self._result(call)
        if problem is not None:
            for other in [one for one, (to, _) in work.adding.items() if to == name]:
                batch = batch + work.adding.pop(other)[1]
            self._engines[name] = self._begin(name)
        elif failed is not None:
            raise error_from(failed)
        self._ask_again(work, batch, problem)

    def _added(self, work: _Work, call: Any) -> None:
        """More was brought to an engine, which took it or was at its end."""
        name, batch = work.adding.pop(call)
        taken, problem = self._result(call)
        if problem is None and not taken:
            work.take_back(batch)
            if name in work.busy:
                work.ending.add(name)
        elif name in work.busy:  # it may have begun with them; how that ends says the rest
            work.busy[name].extend(batch)
        else:
            if problem is not None:  # it died when it had answered all
                self._engines[name] = self._begin(name)
            self._ask_again(work, batch, problem)

    def _result(self, call: Any) -> tuple[Any, Exception | None]:
        """What a call returned, or how its worker died."""
        ray = self.cluster.ray
        try:
            return ray.get(call), None
        except ray.exceptions.RayActorError as error:
            died: Exception = error
            return None, died
        except Exception as error:
            raise gone(self.cluster.place, error) from error

    def _ask_again(self, work: _Work, batch: list[Numbered], problem: Exception | None) -> None:
        """What has no reply yet of a batch that ended. Errors: PotstillError if a request was lost
        with every worker that had it."""
        lost = work.take_back(batch)
        if lost:
            self._warn(f"A worker was lost; {len(lost)} requests that it had are asked again.")
        for number, _ in lost:
            self._losses[number] += 1
            if self._losses[number] >= LOSSES:
                error = problem or PotstillError("a request is never answered")
                raise gone(self.cluster.place, error) from problem


class _Work:
    """What is left of one `complete`, and who has it."""

    def __init__(self) -> None:
        self.pile: deque[Numbered] = deque()
        """Of requests that nobody has."""
        self.positions: dict[int, int] = {}
        """Of what is not answered yet, by number."""
        self.held: Counter[int] = Counter()
        """How many of these each engine has."""
        self.answering: dict[Any, tuple[int, list[Numbered]]] = {}
        """Calls of `answer`: the engine, all that it was given for it."""
        self.adding: dict[Any, tuple[int, list[Numbered]]] = {}
        """Calls of `more`: the engine, what it is given."""
        self.ending: set[int] = set()
        """Engines whose `answer` takes no more."""
        self._holder: dict[int, int] = {}

    @property
    def busy(self) -> dict[int, list[Numbered]]:
        """What each engine that answers was given for it."""
        return dict(self.answering.values())

    def give(self, name: int, batch: list[Numbered]) -> None:
        """An engine has these now."""
        self._holder |= dict.fromkeys((number for number, _ in batch), name)
        self.held[name] += len(batch)

    def answered(self, number: int) -> int:
        """The position of a request that has its reply."""
        self._let_go(number)
        return self.positions.pop(number)

    def take_back(self, batch: list[Numbered]) -> list[Numbered]:
        """Those without a reply go first, to whoever is free. Returns them."""
        left = [one for one in batch if one[0] in self.positions]
        for number, _ in left:
            self._let_go(number)
        self.pile.extendleft(reversed(left))
        return left

    def _let_go(self, number: int) -> None:
        if (name := self._holder.pop(number, None)) is not None:
            self.held[name] -= 1


def gpus_of(cluster: Cluster, reference: str, backend: Backend) -> int:
    """Of each worker: one for a model in PyTorch or vLLM, if there are as many; llama.cpp's package
    and an address have no use for it."""
    chosen = resolve_backend(reference, backend)
    return cluster.gpu_each if chosen in ("transformers", "vllm") else 0


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
        gpus = gpus_of(cluster, reference, backend)
        model = RayModel(cluster, opening, addressed, together, warn, gpus)
        try:
            yield model
        finally:
            model.close()

    return open_there
