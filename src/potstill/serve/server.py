"""Listens: one socket, one event loop, until a signal; then no new requests, and the rest finish.

In: a gateway. Out: an exit without a trace of work half done. The port is taken before the model is
loaded, so that a mistake costs no time. Knows no route.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from potstill.errors import UsageError
from potstill.serve.address import note_address
from potstill.serve.app import application
from potstill.serve.gateway import Gateway, ServeConfig
from potstill.serve.lanes import LOOK_SECONDS, follow
from potstill.serve.problems import ApiError

HEADER_SECONDS = 15.0
BACKLOG = 2048
IDLE_SECONDS = 65
"""An idle connection is kept longer than clients keep theirs, so that it is they who close it, and
no request meets a connection that is just being closed."""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(config: ServeConfig) -> socket.socket:
    """A socket at the address. Errors: UsageError if the port is taken or the address not ours."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
    except OSError as error:
        raise _no_socket(config, error) from error
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux: ends a connection that takes nothing more
            milliseconds = round(1000 * config.stall_seconds)
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        found.bind(address)
        found.listen(BACKLOG)
        found.setblocking(False)
    except OSError as error:
        found.close()
        raise _no_socket(config, error) from error
    return found


def _no_socket(config: ServeConfig, error: OSError) -> UsageError:
    return UsageError(
        f"Cannot listen at {config.host}:{config.port}: {error.strerror or error}.",
        "Another server may run there: choose another --port, or 0 for any that is free.",
    )


def serve(
    gateway: Gateway,
    listening: socket.socket,
    started: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve until SIGTERM or Ctrl-C. started: told the address once requests are answered.

    Errors: ModelError if the engine cannot be started.
    """
    try:
        asyncio.run(Server(gateway).run_at(listening, started))
    finally:
        listening.close()


class Server(uvicorn.Server):
    """One run of the service. `should_exit` ends it as a signal does."""

    def __init__(self, gateway: Gateway) -> None:
        # What uvicorn would say is either in our own log, or a client's mistake.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL + 1)
        super().__init__(
            uvicorn.Config(
                application(gateway),
                http=_Protocol,
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                server_header=False,
                timeout_keep_alive=IDLE_SECONDS,
                timeout_graceful_shutdown=max(1, round(gateway.config.drain_seconds)),
            )
        )
        self._gateway = gateway
        self._starting: asyncio.Task[None] | None = None

    async def run_at(self, listening: socket.socket, started: Callable[[str], None]) -> None:
        """Start the engine, serve, drain, stop the engine. Errors: ModelError."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, self._signal)
        gateway, following = self._gateway, None
        self._starting = asyncio.create_task(gateway.lanes.start())
        try:
            await asyncio.wait({self._starting})
            if self._starting.cancelled():
                return
            self._starting.result()
            gateway.audit(
                "started", model=gateway.name, engine=gateway.engine.model, **_of(gateway)
            )
            following = _following(gateway)
            host, port = listening.getsockname()[:2]
            address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
            note_address(gateway.folder, address)
            started(address)
            await self.serve(sockets=[listening])
            gateway.audit("stopped")
        finally:
            if following is not None:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
            await gateway.lanes.stop()
            gateway.feedback.close()
            gateway.tracing.close()
            if gateway.traffic is not None:
                await asyncio.to_thread(gateway.traffic.close)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are caught from before the engine is loaded until after it is ended."""
        yield

    def _signal(self) -> None:
        """The first signal drains, the second ends at once."""
        self._gateway.draining = True
        self.force_exit = self.should_exit
        self.should_exit = True
        if self._starting is not None:
            self._starting.cancel()


def _following(gateway: Gateway) -> asyncio.Task[None] | None:
    """Looks for promotions while the service runs."""
    if gateway.versions is None or gateway.open_version is None:
        return None
    return asyncio.create_task(
        follow(gateway.lanes, gateway.versions, gateway.open_version, gateway.log, LOOK_SECONDS)
    )


def _of(gateway: Gateway) -> dict[str, Any]:
    """Which versions are served, for the audit log."""
    canary = gateway.lanes.canary
    found: dict[str, Any] = {"version": gateway.lanes.current.version}
    if canary is not None:
        found |= {"candidate": canary.lane.version, "share": canary.share, "assign": canary.assign}
    return found


class _Protocol(H11Protocol):
    """HTTP/1.1 that waits for no head without end, and says what is wrong as an error object."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._late = self.loop.call_later(HEADER_SECONDS, self._no_head, transport)

    def _no_head(self, transport: Any) -> None:
        if getattr(self, "cycle", None) is None:
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._late.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        problem = ApiError(400, "This is not a valid HTTP/1.1 request.", "invalid_http")
        body = json.dumps(problem.body).encode()
        head = h11.Response(
            status_code=400,
            headers=[
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
            ],
            reason=b"Bad Request",
        )
        for event in (head, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
