"""How any model is asked for text: the words of the question, of the reply, and the port itself.

In: `Request`s. Out: `Reply`s, in the order in which they finish. The engines behind the port are
`llamacpp.py`, `transformers.py`, `vllm.py`, `openai.py` and `fake.py`; `replay.py` remembers
replies, `budget.py` counts what they cost, `open.py` chooses.
Knows nothing of documents, questions or files. Imports nothing heavy.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from potstill.records import Turn

FinishReason = Literal["stop", "length", "error"]
LocalBackend = Literal["auto", "llamacpp", "transformers", "vllm", "fake"]
"""Engines that a recipe may name for a model that is at hand."""


@dataclass(frozen=True)
class Request:
    """One conversation whose next turn is wanted. Everything that shapes the reply is in here.

    `schema` is a JSON Schema that the reply follows (an engine that cannot force it asks for it
    in words). `temperature` 0 is greedy; `seed` counts only above that.
    """

    messages: tuple[Turn, ...]
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    schema: dict[str, Any] | None = None
    stop: tuple[str, ...] = ()

    @property
    def prompt_text(self) -> str:
        """All turns as one text: what two requests have in common at its start is shared work."""
        return "\n".join(f"{turn.role}: {turn.content}" for turn in self.messages)

    def digest(self, model: str) -> str:
        """SHA-256 of the model's identity and the whole request, in hex."""
        parts = [
            model,
            [[turn.role, turn.content] for turn in self.messages],
            [self.max_tokens, self.temperature, self.top_p, self.seed],
            self.schema,
            list(self.stop),
        ]
        # No sort_keys: the order of a schema's fields is the order in which they are written.
        return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()


@dataclass(frozen=True)
class Reply:
    """What came back.

    finish_reason: "stop" the model ended its turn, "length" it was cut off at `max_tokens`,
    "error" the engine refused this one request (`text` is then its reason, for example a prompt
    that does not fit). Tokens are counted by the model; seconds are wall time.
    """

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    seconds: float


class TextModel(Protocol):
    """A model that writes text. Use it as `open_model` gives it, inside `with`."""

    def complete(self, requests: Iterable[Request]) -> Iterator[tuple[int, Reply]]:
        """Answer requests, several at a time; yields (position, reply) as they finish.

        `requests` is read ahead only as far as the engine needs. Abandoning the iterator stops
        what was not started.
        """
        ...

    def stream(self, request: Request) -> Iterator[str]:
        """Answer one request in pieces, as they are written."""
        ...

    def count_tokens(self, text: str) -> int:
        """Length of `text` in the model's tokens, without special tokens."""
        ...

    def token_ids(self, text: str, special: bool = False) -> list[int]:
        """Token ids of `text`; `special` adds what the model puts around every text."""
        ...

    def close(self) -> None:
        """Give memory and threads back. May be called twice."""
        ...
