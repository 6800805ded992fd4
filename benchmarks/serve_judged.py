"""Sends a request as it is, byte by byte, and says whether the answer is as it should be.

In: a running service and a request (`serve_mutations.py`). Out: the status, the time, and what is
wrong: a 5xx, no answer, an error that is no error object, a service that hangs.
"""

from __future__ import annotations

import json
import re
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serve_mutations import Mutated

HANGS = 30.0
ERROR = {"message", "type", "param", "code"}


@dataclass(frozen=True)
class Target:
    """A running service."""

    port: int
    key: str
    process: int


@dataclass(frozen=True)
class Reply:
    """status 0: the connection ended without an answer. problem: why it is not as it should be."""

    status: int
    seconds: float
    problem: str
    content: bytes


def send(target: Target, request: Mutated) -> Reply:
    """One request on a connection of its own, and what came of it."""
    began = time.monotonic()
    content, problem = b"", ""
    try:
        with socket.create_connection(("127.0.0.1", target.port), HANGS) as raw:
            raw.settimeout(HANGS)
            try:
                raw.sendall(request.content)
                raw.shutdown(socket.SHUT_WR) if not request.whole else None
            except OSError:
                pass  # it was refused before all of it was sent
            while part := raw.recv(65536):
                content += part
    except TimeoutError:
        problem = "hangs"
    except ConnectionError:
        pass  # the server closed while more was coming; what it said before counts
    seconds = time.monotonic() - began
    status, found = judged(content, request)
    return Reply(status, seconds, problem or found, content)


def judged(content: bytes, request: Mutated) -> tuple[int, str]:
    """The status, and what is wrong with the answer; "" if nothing is."""
    if not content:
        return 0, "no answer" if request.whole else ""
    head, _, body = content.partition(b"\r\n\r\n")
    if length := re.search(rb"content-length: (\d+)", head.lower()):
        body = body[: int(length[1])]  # what was meant as one request may have been two
    line = re.match(rb"HTTP/1\.[01] (\d{3}) ", head)
    if line is None:
        return 0, "no HTTP"
    status = int(line[1])
    if status == 100:
        return judged(body, request)
    if status >= 500 and status != 503:
        return status, "5xx"
    if status == 503:
        return status, "503"
    if status < 400 or request.content.startswith(b"HEAD "):
        return status, ""
    try:
        if b"transfer-encoding: chunked" in head.lower():
            body = body.split(b"\r\n", 1)[1].rsplit(b"\r\n0\r\n", 1)[0]
        error = json.loads(body)["error"]
        whole = set(error) == ERROR and isinstance(error["message"], str) and error["message"]
    except (ValueError, KeyError, TypeError, IndexError):
        whole = False
    return status, "" if whole else "no error object"
