"""What a teacher has cost, and a cap that it does not pass.

In: a budget, prices, a model. Out: the same model, which sends no request that could pass the cap,
and what was spent: by this process and by those before it that were stopped, as the ledger says.
A reply from the request cache never comes by here and costs nothing.
Knows nothing of what is asked.

Before a request is sent, the most that it can cost is set aside (its prompt, and a reply of full
length); its reply frees what it did not use. So the cap holds with many requests at once.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from potstill.core.files import disk_errors
from potstill.errors import BudgetError
from potstill.inference.base import Reply, Request, TextModel
from potstill.inference.endpoint import EndpointConfig
from potstill.inference.sizes import PromptSizes

LEDGER_BYTES = 256  # one write within a page of the disk: a kill leaves the old or the new line
TELLING = 10  # replies; the first come late, as those that began with them are nearly done then


class BudgetConfig(BaseModel):
    """The most that the teacher may cost. The run stops before it would cost more."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    money: float | None = Field(
        None, gt=0, description="Most money, in the currency of the endpoint's prices."
    )
    tokens: int | None = Field(
        None, ge=1, description="Most tokens, of prompts and replies together."
    )
    requests: int | None = Field(None, ge=1, description="Most requests.")


@dataclass(frozen=True)
class Spent:
    """Amounts."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    money: float = 0.0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.money + other.money,
        )


class Meter:
    """Counts what is spent. ledger: a file that outlives a killed process; None keeps none."""

    def __init__(
        self,
        budget: BudgetConfig | None = None,
        endpoint: EndpointConfig | None = None,
        ledger: Path | None = None,
    ) -> None:
        self.budget = budget or BudgetConfig()
        self.endpoint = endpoint
        self.ledger = ledger
        self.spent = _read(ledger)
        self._before = self.spent
        self._sizes = PromptSizes()
        self._aside: dict[int, Spent] = {}
        self._names = 0
        self._lock = threading.Lock()
        self._began: float | None = None
        self._done_before = 0.0

    def metered(
        self, opener: Callable[[], AbstractContextManager[TextModel]]
    ) -> Callable[[], AbstractContextManager[TextModel]]:
        """The same way to open the model, with this meter before it."""

        @contextmanager
        def open_metered() -> Iterator[TextModel]:
            with opener() as model:
                yield MeteredModel(model, self)

        return open_metered

    def set_aside(self, request: Request) -> int | None:
        """Keep back the most that a request can cost; a name for it, or None if the budget has not
        so much left."""
        prompt = self._sizes.tokens(request)
        most = Spent(1, prompt, request.max_tokens, self._price(prompt, request.max_tokens))
        with self._lock:
            if self._began is None:
                self._began = time.monotonic()
            if self._over(sum(self._aside.values(), self.spent + most)) is not None:
                return None
            self._names += 1
            self._aside[self._names] = most
            return self._names

    def free(self, name: int) -> None:
        """Nothing came of a request that something was set aside for."""
        with self._lock:
            self._aside.pop(name, None)

    def settle(self, name: int, request: Request, reply: Reply) -> None:
        """A reply came: what it cost takes the place of what was set aside."""
        cost = Spent(
            1,
            reply.prompt_tokens,
            reply.completion_tokens,
            self._price(reply.prompt_tokens, reply.completion_tokens),
        )
        self._sizes.learn(request, reply.prompt_tokens)
        with self._lock:
            self._aside.pop(name, None)
            self.spent += cost
            self._write()

    def exhausted(self, request: Request) -> BudgetError:
        """What to say when not even one more request fits."""
        prompt = self._sizes.tokens(request)
        most = Spent(1, prompt, request.max_tokens, self._price(prompt, request.max_tokens))
        name = self._over(self.spent + most) or "requests"
        cap, had = getattr(self.budget, name), self.spent
        money = f", {had.money:,.4g} in money" if self.endpoint and had.money else ""
        return BudgetError(
            f"The budget of {cap:,} {name} is spent: one more request could pass it. So far "
            f"{had.requests:,} requests, {had.tokens:,} tokens{money}.",
            f"Raise generate.budget.{name} and run again: it goes on from here, and no finished "
            "request is paid twice.",
        )

    def figures(self, rows: int, done: float, total: float) -> dict[str, float]:
        """How fast and how dear it is, for a progress event: nothing before the first request, no
        pace of rows before the first of use, and no time left before some replies tell one.

        rows: made so far. done of total: how far the stage is.
        """
        if self._began is None:
            self._done_before = done
            return {}
        took = max(1e-3, time.monotonic() - self._began)
        written = self.spent.completion_tokens - self._before.completion_tokens
        figures = {"tokens_per_second": written / took}
        if rows:
            figures = {"rows_per_second": rows / took} | figures
        if self.spent.money:
            figures["cost"] = self.spent.money
        replies = self.spent.requests - self._before.requests
        if done > self._done_before and (replies >= TELLING or done >= total):
            left = (total - done) / (done - self._done_before) * took
            figures["seconds_left"] = max(0.0, left)
        return {name: float(f"{value:.4g}") for name, value in figures.items()}

    def _price(self, prompt_tokens: int, completion_tokens: int) -> float:
        return self.endpoint.price(prompt_tokens, completion_tokens) if self.endpoint else 0.0

    def _over(self, amount: Spent) -> str | None:
        for name in ("money", "tokens", "requests"):
            cap = getattr(self.budget, name)
            if cap is not None and getattr(amount, name) > cap * (1 + 1e-9):
                return name
        return None

    def _write(self) -> None:
        if self.ledger is None:
            return
        line = json.dumps(asdict(self.spent)).ljust(LEDGER_BYTES - 1) + "\n"
        with disk_errors(self.ledger, "write"):
            file = os.open(self.ledger, os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                os.pwrite(file, line.encode(), 0)
            finally:
                os.close(file)


class MeteredModel:
    """A TextModel that asks its meter before each request."""

    def __init__(self, model: TextModel, meter: Meter) -> None:
        self.model, self.meter = model, meter

    def complete(self, requests: Iterable[Request]) -> Iterator[tuple[int, Reply]]:
        """As the model does. Errors: BudgetError when the next request could pass the cap and all
        that were sent are answered."""
        source = enumerate(requests)
        held = next(source, None)
        while held is not None:
            sent: list[tuple[int, int, Request]] = []

            def affordable(sent: list[tuple[int, int, Request]] = sent) -> Iterator[Request]:
                nonlocal held
                while held is not None and (name := self.meter.set_aside(held[1])) is not None:
                    request = held[1]
                    sent.append((name, *held))
                    held = next(source, None)
                    yield request

            try:
                for index, reply in self.model.complete(affordable()):
                    name, position, request = sent[index]
                    self.meter.settle(name, request, reply)
                    yield position, reply
            finally:
                for name, _, _ in sent:
                    self.meter.free(name)
            if held is not None and not sent:
                raise self.meter.exhausted(held[1])

    def stream(self, request: Request) -> Iterator[str]:
        """Not counted: a conversation, not data."""
        return self.model.stream(request)

    def count_tokens(self, text: str) -> int:
        """The model's."""
        return self.model.count_tokens(text)

    def token_ids(self, text: str, special: bool = False) -> list[int]:
        """The model's."""
        return self.model.token_ids(text, special)

    def close(self) -> None:
        """Close the model."""
        self.model.close()


def _read(ledger: Path | None) -> Spent:
    if ledger is None or not ledger.exists():
        return Spent()
    try:
        return Spent(**json.loads(ledger.read_text("utf-8")))
    except (ValueError, TypeError):
        return Spent()  # a power cut spoiled it; the replies themselves are in the request cache
