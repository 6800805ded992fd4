"""Requests that are nearly right: bytes flipped, cut, types changed, huge numbers, odd heads.

In: a seed and a number. Out: the bytes of one HTTP request, always the same for the same two, and
whether it is whole. Knows no server; `serve_fuzz.py` and the tests send them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

NUMBERS = (0, -1, 1, 10**30, -(10**30), 2**63, 1e308, -1e-308, 0.5, -0.0, 257)
WORDS = ("", " ", "\u0000", "\ud800", "\U0001d54f" * 50, "a" * 5000, "' OR 1=1 --",
         "../../etc/passwd", "{{7*7}}", "<script>", "\u202e", "%s%n", "null", "NaN")  # fmt: skip
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "FOO", "get")
TARGETS = (
    "/", "//", "/v1", "/v1/", "/v1/models/", "/v1/models/%00", "/v1/models/..%2f..",
    "/../v1/models",
    "/v1/documents/%ff", "/v1/documents/..", "/v1/documents?name=", "/v1/chat/completions/",
    "/v1/models?" + "a=b&" * 400, "/%", "/v1/models#x", "http://other.example/v1/models", "*",
    "/v1/documents?name=%ff%fe.md", "/v1/documents?name=" + "a" * 3000, "/metrics/..",
    "/openapi.json",
)  # fmt: skip
HEADERS = (
    b"Authorization: Basic YTpi", b"Authorization: Bearer", b"Authorization: Bearer \xff\xfe",
    b"Authorization: Bearer " + b"x" * 9000, b"Content-Type: text/plain", b"Content-Type: ",
    b"Content-Type: application/json; charset=utf-16", b"Content-Encoding: gzip",
    b"Transfer-Encoding: chunked", b"Content-Length: -5", b"Content-Length: 99999999999999999999",
    b"Content-Length: 0x10", b"Content-Length: 3", b"Host: evil.example", b"Host: ", b"Cookie: a=b",
    b"Expect: 100-continue", b"Upgrade: websocket", b"Connection: upgrade", b"X-Odd: \x01\x02",
    b"No colon here", b": empty", b"X-Long: " + b"y" * 70_000, b" folded: x", b"Range: bytes=0-",
    b"Accept: image/png", b"Origin: https://page.example", b"traceparent: 00-0-0-0",
    b"X-HTTP-Method-Override: DELETE", b"Content-Length: 5\r\nContent-Length: 6",
)  # fmt: skip


@dataclass(frozen=True)
class Base:
    """A request that is right. body None: none is sent."""

    method: str
    target: str
    body: Any = None
    kind: str = "application/json"


@dataclass(frozen=True)
class Mutated:
    """whole: whether a server has to answer it: not if its end never comes."""

    content: bytes
    how: str
    whole: bool


def bases(model: str) -> list[Base]:
    """One or two of every route."""
    asked = [{"role": "user", "content": "How many litres does the boiler hold?"}]
    few = {"max_tokens": 3}
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
    return [
        Base("POST", "/v1/chat/completions", {"model": model, "messages": asked, **few}),
        Base("POST", "/v1/chat/completions", {
            "model": f"{model}:documents", "messages": asked, **few, "stream": True,
            "stream_options": {"include_usage": True}, "temperature": 0.7, "top_p": 0.9, "seed": 3,
        }),
        Base("POST", "/v1/chat/completions", {
            "model": model, "messages": [{"role": "system", "content": "Be brief."}, *asked], **few,
            "stop": ["."], "logprobs": True, "top_logprobs": 2, "response_format": schema,
        }),
        Base("POST", "/v1/completions", {"model": model, "prompt": "The keeper", **few}),
        Base("POST", "/v1/embeddings", {"model": model, "input": ["a", "b"]}),
        Base("POST", "/v1/qa", {"question": "Who?", "context": "The keeper.", "model": model}),
        Base("POST", "/v1/feedback", {"response": "chatcmpl-0", "thumb": "up", "comment": "x"}),
        Base("POST", "/v1/documents?name=a.md", "The ferry leaves.", "application/octet-stream"),
        Base("GET", "/v1/documents"),
        Base("DELETE", "/v1/documents/0123456789abcdef"),
        Base("GET", f"/v1/models/{model}"),
        Base("GET", "/metrics"),
        Base("GET", "/ready"),
    ]  # fmt: skip


def mutated(seed: int, number: int, model: str, key: str) -> Mutated:
    """Request `number` of the sequence of that seed."""
    random = Random(f"{seed}:{number}")
    base = random.choice(bases(model))
    content = _content(base)
    if base.body is not None and random.random() < 0.6:
        return _sent(base, key, *_broken_body(random, base, content))
    how = random.choice((_other_method, _other_target, _more_headers, _cut, _flipped, _no_http))
    return how(random, base, key, content)


def _content(base: Base) -> bytes:
    if base.body is None:
        return b""
    return base.body.encode() if isinstance(base.body, str) else json.dumps(base.body).encode()


def _sent(base: Base, key: str, content: bytes, how: str, more: tuple[bytes, ...] = ()) -> Mutated:
    head = [f"{base.method} {base.target} HTTP/1.1".encode(), b"Host: localhost"]
    head += [f"Authorization: Bearer {key}".encode()] if key else []
    if base.body is not None:
        head += [b"Content-Type: " + base.kind.encode(), b"Content-Length: %d" % len(content)]
    whole = b"\r\n".join([*head, *more, b"Connection: close", b"", b""]) + content
    # Two lengths, or one with no end: what comes after may not be what was announced.
    announced = any(one.lower().startswith((b"content-length", b"transfer", b"expect"))
                    for one in more)  # fmt: skip
    return Mutated(whole, how, not announced)


def _broken_body(random: Random, base: Base, content: bytes) -> tuple[bytes, str]:
    place = random.randrange(len(content) + 1)
    kinds: dict[str, Callable[[], bytes]] = {
        "flipped": lambda: _flip(random, content),
        "cut": lambda: content[:place],
        "not utf-8": lambda: content[:place] + random.choice((b"\xff", b"\xc3", b"\xed\xa0\x80"))
        + content[place:],
        "junk": lambda: content[:place] + random.randbytes(random.randrange(1, 40))
        + content[place:],
        "nested": lambda: random.choice((b"[", b'{"a":')) * random.choice((50, 5000, 100_000)),
        "twice": lambda: content * 2,
        "long": lambda: content[:place] + b" " * random.choice((10_000, 1_000_001))
        + content[place:],
    }  # fmt: skip
    if isinstance(base.body, dict):
        kinds |= {f"field {n}": lambda: _other_field(random, base.body) for n in range(7)}
    how = random.choice(list(kinds))
    return kinds[how](), how


def _flip(random: Random, content: bytes) -> bytes:
    found = bytearray(content)
    for _ in range(random.randrange(1, 6)):
        if found:
            found[random.randrange(len(found))] ^= 1 << random.randrange(8)
    return bytes(found)


def _value(random: Random, deep: int = 0) -> Any:
    if deep < 3 and random.random() < 0.25:
        inner = [_value(random, deep + 1) for _ in range(random.randrange(4))]
        return inner if random.random() < 0.5 else {str(n): one for n, one in enumerate(inner)}
    return random.choice((None, True, False, *NUMBERS, *WORDS, float("nan"), float("inf")))


def _other_field(random: Random, body: dict[str, Any]) -> bytes:
    """One place of the body, at any depth, is something else, gone, or has a neighbour."""
    found = json.loads(json.dumps(body))
    node: Any = found
    while True:
        places = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not places:
            break
        place = random.choice(places)
        if isinstance(node[place], dict | list) and random.random() < 0.6:
            node = node[place]
            continue
        what = random.random()
        if what < 0.7:
            node[place] = _value(random)
        elif what < 0.85:
            del node[place]
        elif isinstance(node, dict):
            node[random.choice(("n", "tools", "logit_bias", "", "__proto__", "max_tokens"))] = (
                _value(random)
            )
        break
    return json.dumps(found, ensure_ascii=random.random() < 0.5).encode("utf-8", "surrogatepass")


def _other_method(random: Random, base: Base, key: str, content: bytes) -> Mutated:
    other = Base(random.choice(METHODS), base.target, base.body, base.kind)
    return _sent(other, key, content, f"method {other.method}")


def _other_target(random: Random, base: Base, key: str, content: bytes) -> Mutated:
    target = random.choice(TARGETS)
    return _sent(Base(base.method, target, base.body, base.kind), key, content, "target")


def _more_headers(random: Random, base: Base, key: str, content: bytes) -> Mutated:
    more = tuple(random.sample(HEADERS, random.randrange(1, 4)))
    if random.random() < 0.1:
        more += tuple(b"X-%d: y" % n for n in range(random.choice((120, 2000))))
    return _sent(base, key, content, "headers", more)


def _cut(random: Random, base: Base, key: str, content: bytes) -> Mutated:
    whole = _sent(base, key, content, "").content
    return Mutated(whole[: random.randrange(len(whole))], "cut short", False)


def _flipped(random: Random, base: Base, key: str, content: bytes) -> Mutated:
    # A flipped length or line break may leave a request without an end.
    return Mutated(_flip(random, _sent(base, key, content, "").content), "flipped head", False)


def _no_http(random: Random, base: Base, key: str, content: bytes) -> Mutated:
    found = random.choice((
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\r\n\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n",
        b"\x00" * 64, random.randbytes(200), b"GET /health HTTP/1.0\r\n\r\n", b"A" * 100_000,
    ))  # fmt: skip
    return Mutated(found, "no http", False)
