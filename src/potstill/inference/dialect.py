"""How one endpoint wants to be asked: the body of a request, and what it turned out not to take.

In: requests, and what an endpoint complained about. Out: bodies in its dialect of OpenAI's chat
completions. What was learned holds for the whole run. Pure. Knows no client.
"""

from __future__ import annotations

import json
import re
from typing import Any

from potstill.inference.base import Request
from potstill.inference.endpoint import EndpointConfig

LADDER = ("json_schema", "json_object", "prompt")  # from strict to lenient
UNKNOWN = re.compile(
    r"unsupported|not support|unrecogni[sz]ed|unknown|not (?:permitted|allowed|available)|"
    r"unexpected|instead|forbidden|invalid (?:field|parameter|argument)",
    re.IGNORECASE,
)
ABOUT_FORM = re.compile(
    r"response_?format|json[_ ]?(?:schema|object|mode)|schema|structured|guided|grammar",
    re.IGNORECASE,
)
ABOUT_LENGTH = re.compile(r"context|too (?:large|long)|maximum|at most", re.IGNORECASE)
DROPPABLE = ("seed", "top_p", "stop", "temperature")
IN_WORDS = (
    "Reply with one JSON value that follows this JSON Schema, and with nothing else:\n{schema}"
)


class Dialect:
    """What is sent to one model of one endpoint. `version` counts what was learned."""

    def __init__(self, endpoint: EndpointConfig, model: str) -> None:
        self.model = model
        self.extra = endpoint.extra
        self.version = 0
        self._auto = endpoint.structured == "auto"
        self.form = LADDER[0] if self._auto else endpoint.structured
        self._dropped: set[str] = set()
        self._length = "max_tokens"

    def body(self, request: Request, stream: bool = False) -> dict[str, Any]:
        """The body of a request, without what the endpoint does not take."""
        messages = [{"role": turn.role, "content": turn.content} for turn in request.messages]
        body: dict[str, Any] = {
            "model": self.model,
            "messages": messages,
            self._length: request.max_tokens,
            "temperature": request.temperature,
        }
        if request.temperature > 0:
            body |= {"seed": request.seed, "top_p": request.top_p}
        if request.stop:
            body["stop"] = list(request.stop)
        if stream:
            body["stream"] = True
        if request.schema is not None:
            if self.form == "json_schema":
                schema = {"name": "reply", "strict": True, "schema": request.schema}
                body["response_format"] = {"type": "json_schema", "json_schema": schema}
            elif self.form == "json_object":
                body["response_format"] = {"type": "json_object"}
            if self.form != "json_schema":
                words = IN_WORDS.format(schema=json.dumps(request.schema, ensure_ascii=False))
                messages[-1]["content"] = f"{messages[-1]['content']}\n\n{words}"
        return {
            name: value for name, value in body.items() if name not in self._dropped
        } | self.extra

    def adapt(self, spoken: int, body: dict[str, Any], complaint: str) -> str | None:
        """Learn from a complaint about a body of version `spoken`.

        Returns a note for the user ("" if this was learned already), or None where the complaint
        is not about what can be left out.
        """
        if spoken < self.version:
            return ""
        note = self._without_field(body, complaint) or self._looser_form(body, complaint)
        if note is not None:
            self.version += 1
        return note

    def _without_field(self, body: dict[str, Any], complaint: str) -> str | None:
        if not UNKNOWN.search(complaint):
            return None
        if (
            self._length == "max_tokens"
            and "max_tokens" in complaint
            and "max_completion_tokens" in complaint
            and not ABOUT_LENGTH.search(complaint)
        ):
            self._length = "max_completion_tokens"
            return f"{self.model} wants max_completion_tokens instead of max_tokens."
        for name in DROPPABLE:
            known = name in body and name not in self.extra
            if known and re.search(rf"(?<![A-Za-z_]){name}(?![A-Za-z_])", complaint):
                self._dropped.add(name)
                return f"{self.model} does not take {name}; it is asked without."
        return None

    def _looser_form(self, body: dict[str, Any], complaint: str) -> str | None:
        place = LADDER.index(self.form)
        if (
            not self._auto
            or "response_format" not in body
            or place + 1 == len(LADDER)
            or not ABOUT_FORM.search(complaint)
        ):
            return None
        refused, self.form = self.form, LADDER[place + 1]
        return (
            f"{self.model} does not take response_format {refused}; replies are held to their "
            f"form by {'words alone' if self.form == 'prompt' else self.form}."
        )
