"""What an endpoint sent back, understood: a reply, or what kind of failure it is.

In: status, headers and body of an HTTP answer. Out: an Answer or a Failure. Pure. Takes nothing
for granted: a body may be HTML, half of a JSON text, or something else altogether.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, Literal
from urllib.parse import urlsplit

from potstill.inference.base import FinishReason

LONGEST_REASON = 300
THOUGHT = re.compile(r"\s*<(think(?:ing)?)>.*?(?:</\1>|\Z)\s*", re.DOTALL)
THOUGHT_END = re.compile(r".*</think(?:ing)?>\s*", re.DOTALL)
TAG = re.compile(r"<(script|style)\b.*?</\1>|<[^>]*>", re.DOTALL | re.IGNORECASE)
DELAY = re.compile(r'"retryDelay"\s*:\s*"(\d+(?:\.\d+)?)s"')  # Gemini's, in the body of a 429
NO_MODEL = re.compile(
    r"model_not_found|model\b.{0,80}\b(?:not found|not exist|unknown|not available)|"
    r"(?:unknown|invalid|no such) model",
    re.IGNORECASE | re.DOTALL,
)
NO_CREDIT = re.compile(
    r"insufficient_quota|insufficient (?:credit|balance|fund)|billing|payment", re.IGNORECASE
)
NO_KEY = re.compile(  # Gemini says 400 of a wrong key
    r"api[ _]?key.{0,40}(?:not valid|invalid|expired)|(?:invalid|incorrect).{0,20}api[ _]?key",
    re.IGNORECASE,
)
HALF_A_SIGN = re.compile("[\ud800-\udfff]")  # UTF-16's, of a text that was cut: no file holds it
CUT_OFF = frozenset({"length", "max_tokens", "model_length"})

Kind = Literal["busy", "retry", "key", "complaint", "request", "useless"]


@dataclass(frozen=True)
class Answer:
    """A reply; tokens are None where the endpoint did not count them."""

    text: str
    finish_reason: FinishReason
    prompt_tokens: int | None
    completion_tokens: int | None


@dataclass(frozen=True)
class Failure:
    """Why there is no reply.

    busy: too many requests; the key waits. retry: the endpoint failed; the same again. key: this
    key is of no use. complaint: something in the body is not taken. request: this one request is
    refused. useless: nothing that is asked here will be answered.
    """

    kind: Kind
    reason: str
    retry_after: float | None = None


def read(status: int, headers: Mapping[str, str], body: bytes, now: float) -> Answer | Failure:
    """Understand an answer. now: seconds since the epoch, for a Retry-After that is a date."""
    value = _json(body)
    reason = f"HTTP {status}: {_message(value, body)}"
    if status == 200:
        return _read_success(value, headers, body, now)
    after = _retry_after(headers, body, now)
    if 300 <= status < 400:
        where = _place(headers.get("location", ""))
        return Failure("useless", f"HTTP {status}: it is redirected to {where}")
    # Gemini speaks of billing at every limit; of one that passes it says when.
    if status in (401, 402, 403) or (status == 429 and after is None and NO_CREDIT.search(reason)):
        return Failure("key", reason)
    if status == 400 and NO_KEY.search(reason):
        return Failure("key", reason)
    if status == 429:
        return Failure("busy", reason, after)
    if status in (404, 405, 410) or (status in (400, 422) and NO_MODEL.search(reason)):
        return Failure("useless", reason)
    if status in (400, 422):
        return Failure("complaint", reason)
    if status in (408, 409, 425) or status >= 500 or status < 200:
        return Failure("retry" if after is None else "busy", reason, after)
    return Failure("request", reason)


def read_event(line: str) -> str | None:
    """A piece of text from a line of a stream; None at its end.

    Errors: ValueError with a reason if the line is not what a stream holds.
    """
    name, _, data = line.partition(":")
    data = data.strip()
    if not line or not name or name in ("event", "id", "retry"):
        return ""
    if name != "data":
        raise ValueError(f"the stream holds something else than events: {_excerpt(line)}")
    if data == "[DONE]":
        return None
    value = _json(data.encode())
    if not isinstance(value, dict) or "error" in value:
        raise ValueError(_message(value, data.encode()))
    choices = value.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return ""
    delta = choices[0].get("delta")
    return _content(delta.get("content")) if isinstance(delta, dict) else ""


def without_thoughts(text: str) -> str:
    """The text after what a reasoning model thought aloud; nothing if it never came to an end."""
    if THOUGHT.match(text):
        return THOUGHT.sub("", text, count=1)
    return THOUGHT_END.sub("", text) if "</think" in text else text


def _read_success(
    value: Any, headers: Mapping[str, str], body: bytes, now: float
) -> Answer | Failure:
    if value is None:
        if "html" in headers.get("content-type", "") or body.lstrip()[:1] == b"<":
            return Failure("useless", f"it answers HTML, not JSON: {_message(None, body)}")
        return Failure("retry", f"it answers something that is no JSON: {_message(None, body)}")
    if isinstance(value, dict) and value.get("error"):  # some gateways say 200 and mean otherwise
        error = value["error"]
        code = error.get("code") if isinstance(error, dict) else None
        if isinstance(code, int) and 400 <= code < 600:
            return read(code, headers, body, now)
        return Failure("retry", _message(value, body))
    choices = value.get("choices") if isinstance(value, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        return Failure(
            "retry", f"the JSON holds no reply: {_excerpt(body.decode(errors='replace'))}"
        )
    finish = str(choice.get("finish_reason") or "stop")
    text = without_thoughts(_content(message.get("content")))
    if finish == "error":
        return Failure("retry", "the model broke off")
    if finish == "content_filter":
        return Failure("request", "the endpoint's content filter withheld the reply")
    if not text and message.get("refusal"):
        return Failure("request", f"the model refused: {_excerpt(str(message['refusal']))}")
    usage = value.get("usage")
    counted = usage if isinstance(usage, dict) else {}
    return Answer(
        text,
        "length" if finish in CUT_OFF else "stop",
        _count(counted.get("prompt_tokens")),
        _count(counted.get("completion_tokens")),
    )


def _place(location: str) -> str:
    """Where a redirect leads, without what may be secret."""
    try:
        to = urlsplit(location)
    except ValueError:
        return "no address"
    return (f"{to.scheme}://{to.hostname}{to.path}" if to.hostname else to.path) or "nowhere"


def _content(content: Any) -> str:
    """Text as such, or the text parts of a list that may hold thoughts and other things too."""
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict) and part.get("type") == "text"]
        content = "".join(str(part.get("text") or "") for part in parts)
    return HALF_A_SIGN.sub("\ufffd", content) if isinstance(content, str) else ""


def _count(value: Any) -> int | None:
    plain = isinstance(value, int) and not isinstance(value, bool)
    return value if plain and value >= 0 else None


def _retry_after(headers: Mapping[str, str], body: bytes, now: float) -> float | None:
    """Seconds that the endpoint asks for: as a number, as a date, or in the body."""
    if milliseconds := _seconds(headers.get("retry-after-ms", "")):
        return milliseconds / 1000
    said = headers.get("retry-after", "").strip()
    if (seconds := _seconds(said)) is not None:
        return seconds
    if said:
        try:
            date = parsedate_to_datetime(said)
        except ValueError:
            return None
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
        return max(0.0, date.timestamp() - now)
    found = DELAY.search(body.decode(errors="replace"))
    return float(found[1]) if found else None


def _seconds(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\d{1,9}(?:\.\d+)?", text) else None


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _message(value: Any, body: bytes) -> str:
    """What an error says, whoever wrote it."""
    if isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, dict):
        error = value.get("error") or value
        if isinstance(error, dict):
            said = [error.get("message") or error.get("detail") or "", error.get("code") or ""]
            text = " ".join(part if isinstance(part, str) else json.dumps(part) for part in said)
            if text.strip():
                return _excerpt(text)
        elif isinstance(error, str):
            return _excerpt(error)
    return _excerpt(TAG.sub(" ", body[:20_000].decode(errors="replace"))) or "an empty body"


def _excerpt(text: str) -> str:
    """One line of printable signs. Keys are taken out by who has them, so nothing is cut here
    that could leave a part of one: see `shorten`."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())


def shorten(reason: str) -> str:
    """A reason as long as a person reads it."""
    return reason if len(reason) <= LONGEST_REASON else f"{reason[:LONGEST_REASON]} ..."
