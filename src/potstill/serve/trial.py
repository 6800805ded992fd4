"""What each version did: counted always, and kept row by row while a candidate gets a share.

In: requests that are over. Out: Prometheus figures by version, and lines of trial.jsonl, from which
`potstill ab` compares the two. A line holds no prompt and no answer.

    {"time", "event": "request", "current", "candidate", "assigned", "variant", "unit", "response",
     "outcome", "seconds", "first_token_seconds", "prompt_tokens", "completion_tokens", "refused"}

assigned: the version that the request was given to; variant: the one that answered it, which is
another where the candidate failed. unit: what is assigned as one: a key, a conversation, a request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from potstill.serve.monitor import Audit

if TYPE_CHECKING:
    from potstill.serve.answering import Work
    from potstill.serve.gateway import Gateway

FILE = "trial.jsonl"


class Trial:
    """The account of one service's versions."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._write = Audit(gateway.folder / FILE, gateway.log)

    def note(self, work: Work, outcome: str, seconds: float) -> None:
        """A request is over. outcome: ok, abandoned (by its client), or an error's code."""
        if not work.variant:
            return  # refused before any version saw it
        figures, usage = self._gateway.figures, work.usage or {}
        figures.variant_requests.labels(work.variant, outcome).inc()
        for kind in ("prompt", "completion"):
            count = usage.get(f"{kind}_tokens", 0)
            figures.variant_tokens.labels(work.variant, kind).inc(count)
        if work.first_token_seconds is not None:
            figures.variant_first_token.labels(work.variant).observe(work.first_token_seconds)
        if not work.unit:
            return
        self._write(
            "request",
            current=work.current,
            candidate=work.candidate,
            assigned=work.assigned,
            variant=work.variant,
            unit=work.unit,
            response=work.id,
            outcome=outcome,
            seconds=round(seconds, 4),
            first_token_seconds=work.first_token_seconds and round(work.first_token_seconds, 4),
            prompt_tokens=usage.get("prompt_tokens", 0),
            completion_tokens=usage.get("completion_tokens", 0),
            refused=work.declined,
        )
