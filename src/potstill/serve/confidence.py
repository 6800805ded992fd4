"""How sure a student is of its answer: the log-probabilities of the tokens that it wrote.

In: a body for the engine, choices of its events. Out: log-probabilities, kept for the service; the
client sees those that it asked for and no others. Knows no store and no test.
"""

from __future__ import annotations

import math
from typing import Any


def ask_for(body: dict[str, Any], wanted: bool) -> int | None:
    """Make an engine's body of a chat ask for them where the client did, or `wanted` says so.

    Returns how many likeliest tokens the client wants to see beside each; None: it asked for none
    of it. llama.cpp says nothing at all where it is asked for 0 of them, so it is asked for one.
    """
    shown = int(body.get("top_logprobs") or 0) if body.get("logprobs") else None
    if wanted or shown is not None:
        body |= {"logprobs": True, "top_logprobs": max(1, shown or 0)}
    return shown


def taken(choice: dict[str, Any], shown: int | None) -> list[float]:
    """The log-probabilities in a choice, nats; what the client did not ask for is taken out."""
    said = choice.get("logprobs")
    rows = (said.get("content") if isinstance(said, dict) else None) or []
    values = [float(row["logprob"]) for row in rows if _is_number(row.get("logprob"))]
    if shown is None:
        choice.pop("logprobs", None)
    elif shown == 0:
        for row in rows:
            row["top_logprobs"] = []
    return values


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
