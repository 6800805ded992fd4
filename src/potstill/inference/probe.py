"""One short request to a model behind an address, with each of its keys: does it answer?

In: a reference, an endpoint. Out: of each key, named by its variable, how fast a reply came or what
stands in the way. Never a key. Nothing is tried again, and a reply costs a handful of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from potstill.errors import PotstillError, UsageError
from potstill.inference.base import Request
from potstill.inference.endpoint import PREFIX, EndpointConfig, is_endpoint
from potstill.inference.open import open_model
from potstill.records import Turn

LONGEST_WAIT = 30.0
TOKENS = 16
ASKED = Request(
    messages=(Turn(role="user", content="Answer with one word: ready."),), max_tokens=TOKENS
)


@dataclass(frozen=True)
class Probe:
    """What came of one key. variable: its name; empty where the endpoint takes none. problem:
    empty if it answered. seconds: until the reply was there."""

    variable: str
    seconds: float
    problem: str = ""
    hint: str = ""


def probe(reference: str, endpoint: EndpointConfig | None) -> list[Probe]:
    """Ask once with each key. Errors: UsageError for a model that is on this machine."""
    if not is_endpoint(reference) or endpoint is None:
        raise UsageError(
            f"The teacher {reference} is on this machine: there is no address to ask.",
            f"One behind an address is named {PREFIX}MODEL, with generate.endpoint.base_url.",
        )
    found = []
    for key in endpoint.keys or ("",):
        variable = key if isinstance(key, str) else key.variable
        alone = endpoint.model_copy(
            update={
                "keys": (key,) if variable else (),
                "max_retries": 0,
                "connect_seconds": min(LONGEST_WAIT, endpoint.connect_seconds),
                "first_byte_seconds": min(LONGEST_WAIT, endpoint.first_byte_seconds),
                "timeout_seconds": min(LONGEST_WAIT, endpoint.timeout_seconds),
            }
        )
        found.append(_ask(reference, variable, alone))
    return found


def _ask(reference: str, variable: str, endpoint: EndpointConfig) -> Probe:
    try:
        with open_model(reference, "openai", endpoint=endpoint) as model:
            _, reply = next(iter(model.complete([ASKED])))
    except PotstillError as error:
        return Probe(variable, 0.0, error.message, error.hint)
    if reply.finish_reason == "error":
        return Probe(variable, reply.seconds, reply.text[:400] or "It refused the request.")
    return Probe(variable, reply.seconds)
