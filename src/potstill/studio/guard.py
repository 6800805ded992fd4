"""Who may ask: this machine's own browser, with the cookie, and for changes with the form's secret.

In: every request, before any page sees it. Out: the request, or a refusal in words; on every
response the headers that keep scripts and frames of others out. Knows no page.

The token of the first address is exchanged for a cookie that scripts cannot read and that other
sites cannot make a browser send. A foreign name that leads to this machine (DNS rebinding) fails at
the Host check; a foreign page at the Origin check and at the secret.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from potstill.studio.session import Studio

OWN_NAMES = frozenset({"127.0.0.1", "localhost", "::1"})
LONGEST_FORM = 2 << 20
UPLOADS = "/files"
"""The one place that takes more than a form, and looks after its size by itself."""
READING = frozenset({"GET", "HEAD"})
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    # Not no-referrer: with that a browser sends `Origin: null` along with our own forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
EXPIRED = (
    "This address has expired",
    "The studio makes a new address each time it starts. Runs go on regardless. Open the address "
    "that it printed in the terminal, or start it again with: potstill studio",
)
ENDED = (
    "The studio was started again",
    "With each start it lets browsers in anew. Runs go on regardless. Open the address that it "
    "printed in the terminal.",
)
UNKNOWN = (
    "The studio does not know this browser yet",
    "Open the whole address that it printed in the terminal, with the token at its end; or start "
    "it again with: potstill studio",
)
FOREIGN = (
    "This request came from somewhere else",
    "The studio answers pages of its own on this machine, and nobody else. Open the address that "
    "it printed in the terminal.",
)
STALE = (
    "This page is from before",
    "The studio was started again since the page was opened. Reload the page, then try once more.",
)
TOO_LARGE = ("That is too much for a form", "Files go into the box for files, which has more room.")
Refuse = Callable[[Request, int, str, str], Response]


class Guard:
    """Wraps the application. refuse(request, status, title, words) makes the page of a refusal."""

    def __init__(self, app: ASGIApp, studio: Studio, refuse: Refuse) -> None:
        self.app, self.studio, self.refuse = app, studio, refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        request = Request(scope, receive)
        problem = self._problem(request)
        if problem is None and request.method not in READING:
            problem, receive = await self._change(request, receive)
        if problem is not None:
            await problem(scope, receive, send_guarded)
            return
        await self.app(scope, receive, send_guarded)

    def _problem(self, request: Request) -> Response | None:
        """What stands in the way of any request; the exchange of the token for the cookie."""
        if urlsplit(f"//{request.headers.get('host', '')}").hostname not in OWN_NAMES:
            return self.refuse(request, 403, *FOREIGN)
        if request.url.path.startswith("/static/"):
            return None
        presented = request.query_params.get("token")
        if presented is not None and request.method in READING:
            if not _same(presented, self.studio.token):
                return self.refuse(request, 403, *EXPIRED)
            return self._welcome(request)
        cookie = request.cookies.get(cookie_name(request))
        if cookie is None:
            return self.refuse(request, 403, *UNKNOWN)
        if not _same(cookie, self.studio.cookie):
            return self.refuse(request, 403, *ENDED)
        return None

    def _welcome(self, request: Request) -> Response:
        rest = [one for one in request.query_params.multi_items() if one[0] != "token"]
        path = "/" + request.url.path.lstrip("/")  # never //elsewhere
        target = path + (f"?{urlencode(rest)}" if rest else "")
        answer = RedirectResponse(target, 303)
        answer.set_cookie(
            cookie_name(request), self.studio.cookie, httponly=True, samesite="strict", path="/"
        )
        return answer

    async def _change(self, request: Request, receive: Receive) -> tuple[Response | None, Receive]:
        """What stands in the way of a change, and the body for whoever reads it next."""
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
            return self.refuse(request, 403, *FOREIGN), receive
        if origin is None and request.headers.get("sec-fetch-site", "none") != "same-origin":
            return self.refuse(request, 403, *FOREIGN), receive
        presented = request.headers.get("x-form", "")
        if request.url.path != UPLOADS:
            body = await _body(request)
            if body is None:
                return self.refuse(request, 413, *TOO_LARGE), receive
            kind = request.headers.get("content-type", "")
            if kind.startswith("application/x-www-form-urlencoded"):
                presented = fields_of(body).get("form", "")
            receive = _again(body, receive)
        if not _same(presented, self.studio.form):
            return self.refuse(request, 403, *STALE), receive
        return None, receive


def cookie_name(request: Request) -> str:
    """Cookies do not tell ports apart: each studio of this machine has a name of its own."""
    return f"potstill-studio-{Headers(scope=request.scope).get('host', '').rpartition(':')[2]}"


def fields_of(body: bytes) -> dict[str, str]:
    """The fields of a form's body; of several with one name the last."""
    text = body.decode("utf-8", "replace")
    try:
        return dict(parse_qsl(text, keep_blank_values=True, max_num_fields=1000))
    except ValueError:
        return {}


async def _body(request: Request) -> bytes | None:
    """The whole body, or None where it is longer than a form may be."""
    found = bytearray()
    async for part in request.stream():
        found += part
        if len(found) > LONGEST_FORM:
            return None
    return bytes(found)


def _again(body: bytes, receive: Receive) -> Receive:
    """The body that was read, once more; then whatever comes from the connection."""
    left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return left.pop() if left else await receive()

    return again


def _same(presented: str, right: str) -> bool:
    return hmac.compare_digest(presented.encode("utf-8", "replace"), right.encode())
