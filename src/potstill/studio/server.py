"""Opens the studio at an address of this machine, and closes it at Ctrl-C or SIGTERM.

In: a project folder and a port. Out: pages until a signal comes; runs that were started go on.
Other projects are opened beside it, at ports of their own, and close with it. Knows no page.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any

from potstill.core.extras import check_installed
from potstill.errors import UsageError
from potstill.studio.launch import hear_interrupts
from potstill.studio.projects import remember
from potstill.studio.session import Studio

HOST = "127.0.0.1"
PORT = 8600
CLOSING_SECONDS = 2
PATIENCE = 30.0
"""Seconds within which a studio beside this one has begun to answer."""


def open_studio(
    project: Path | None = None,
    *,
    port: int = PORT,
    browser: bool = True,
    started: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve the studio of a project folder [here] until Ctrl-C or SIGTERM.

    port: 0 is any that is free. browser: open the address there. started: told the address, which
    holds the token, once it answers. Errors: UsageError for a folder that is not there or a port
    that is taken; MissingExtraError.
    """
    for module in ("fastapi", "uvicorn", "jinja2"):
        check_installed(module, "The studio", "studio")
    folder = (project or Path.cwd()).resolve()
    if not folder.is_dir():
        raise UsageError(
            f"The project folder {folder} does not exist.", "Make it first, or name another one."
        )
    hear_interrupts()
    remember(folder)
    opened = Opened()
    studio = Studio(folder, opener=opened.open)
    with contextlib.closing(_listen(port)) as listening, contextlib.closing(opened):
        address = opened.note(studio, listening)

        def ready() -> None:
            started(address)
            if browser:
                with contextlib.suppress(webbrowser.Error):
                    webbrowser.open(address)

        serve(studio, listening, ready)


class Opened:
    """The studios of this process, one a project."""

    def __init__(self) -> None:
        self._addresses: dict[Path, str] = {}
        self._servers: list[tuple[Any, threading.Thread]] = []
        self._lock = threading.Lock()

    def note(self, studio: Studio, listening: socket.socket) -> str:
        """Keep the address of a studio that listens there."""
        address = f"http://{HOST}:{listening.getsockname()[1]}/?token={studio.token}"
        return self._addresses.setdefault(studio.project, address)

    def open(self, folder: Path, page: str = "") -> str:
        """The address of a project's studio, at a page of it; it is started unless it runs.

        Errors: UsageError if it cannot listen.
        """
        with self._lock:
            if folder not in self._addresses:
                remember(folder)
                studio, listening = Studio(folder, opener=self.open), _listen(0)
                answers = threading.Event()
                server = _server(studio, answers.set)
                thread = threading.Thread(
                    target=server.run, kwargs={"sockets": [listening]}, daemon=True
                )
                thread.start()
                if not answers.wait(PATIENCE):
                    server.should_exit = True
                    raise UsageError(
                        f"The studio of {folder} does not begin to answer.",
                        f"Open it by itself: potstill studio --project {folder}",
                    )
                self.note(studio, listening)
                self._servers.append((server, thread))
        return self._addresses[folder].replace("/?", f"/{page}?", 1)

    def close(self) -> None:
        """End those that were opened beside the first."""
        for server, _ in self._servers:
            server.should_exit = True
        for _, thread in self._servers:
            thread.join(2 * CLOSING_SECONDS)


def serve(studio: Studio, listening: socket.socket, ready: Callable[[], None]) -> None:
    """Serve at a listening socket until a signal. ready: called once requests are answered."""
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C is how it is closed
        _server(studio, ready).run(sockets=[listening])


def _server(studio: Studio, ready: Callable[[], None]) -> Any:
    import uvicorn

    from potstill.studio.app import application

    class Server(uvicorn.Server):
        """One run of the studio."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            studio.closing.set()  # live pages end their streams, which else would be waited for
            await studio.player.close()
            await super().shutdown(sockets)

    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL + 1)
    return Server(
        uvicorn.Config(
            application(studio),
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=CLOSING_SECONDS,
        )
    )


def _listen(port: int) -> socket.socket:
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((HOST, port))
        found.listen(128)
        found.setblocking(False)
    except OSError as error:
        found.close()
        raise UsageError(
            f"Cannot listen at {HOST}:{port}: {error.strerror or error}.",
            "A studio may be open there: choose another --port, or 0 for any that is free.",
        ) from error
    return found
