"""Remembers finished replies, so that no request is ever sent twice.

In: a folder, the model's identity, and a way to open the model. Out: a TextModel that answers
from the folder where it can. Survives SIGKILL at any moment: a reply is one appended line, written
before anyone sees it; a line that was cut short is skipped. Several processes may share the folder:
what one was answered is known to the others before they send their next request, and only what
they ask at the same moment is asked twice. A reply from here costs nothing.
Knows nothing of what is asked. The model is opened at the first request that is new.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path

from potstill.core.files import disk_errors
from potstill.inference.base import Reply, Request, TextModel

READ_BYTES = 16 * 2**20  # at a time; no reply is longer
SYNC_SECONDS = 0.5  # a power cut may lose what was written since; a killed process loses nothing


class ReplayModel:
    """A TextModel that answers each distinct request once in its life.

    folder: one file a model in it. identity: digest of the model and name and version of the
    engine: replies of another engine are not these. `replayed` and `sent` count requests.
    """

    def __init__(
        self,
        folder: Path,
        identity: str,
        opener: Callable[[], AbstractContextManager[TextModel]],
    ) -> None:
        self.identity = identity
        self.replayed = 0
        self.sent = 0
        self.path = folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.jsonl"
        self._opener = opener
        self._opened: AbstractContextManager[TextModel] | None = None
        self._model: TextModel | None = None
        with disk_errors(self.path, "open"):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        self._replies: dict[str, Reply] = {}
        self._read_to = 0
        self._torn = False
        self._lock = threading.Lock()  # requests are taken by an engine's threads
        self._synced = time.monotonic()
        self._refresh()

    def complete(self, requests: Iterable[Request]) -> Iterator[tuple[int, Reply]]:
        """Known replies first; the rest are sent and remembered. Refusals are not remembered."""
        wanted: dict[str, list[int]] = {}
        fresh: list[tuple[str, Request]] = []
        self._refresh()
        for position, request in enumerate(requests):
            key = request.digest(self.identity)
            known = self._replies.get(key)
            if known is not None:
                self.replayed += 1
                yield position, known
                continue
            if key not in wanted:
                fresh.append((key, request))
            wanted.setdefault(key, []).append(position)
        if not fresh:
            return
        sent: list[str] = []
        elsewhere: deque[str] = deque()
        for index, reply in self._inner().complete(self._still_new(fresh, sent, elsewhere)):
            self.sent += 1
            if reply.finish_reason != "error":
                self._remember(sent[index], reply)
            for position in wanted[sent[index]]:
                yield position, reply
            yield from self._found(wanted, elsewhere)
        yield from self._found(wanted, elsewhere)

    def stream(self, request: Request) -> Iterator[str]:
        """Not remembered: what is streamed is a conversation, not data."""
        return self._inner().stream(request)

    def count_tokens(self, text: str) -> int:
        """Length in the model's tokens."""
        return self._inner().count_tokens(text)

    def token_ids(self, text: str, special: bool = False) -> list[int]:
        """The model's token ids."""
        return self._inner().token_ids(text, special)

    def close(self) -> None:
        """Make every reply durable and close the model, if it was opened."""
        if self._file >= 0:
            os.fsync(self._file)
            os.close(self._file)
            self._file = -1
        if self._opened is not None:
            opened, self._opened, self._model = self._opened, None, None
            opened.__exit__(None, None, None)

    def _inner(self) -> TextModel:
        if self._model is None:
            self._opened = self._opener()
            self._model = self._opened.__enter__()
        return self._model

    def _still_new(
        self, fresh: list[tuple[str, Request]], sent: list[str], elsewhere: deque[str]
    ) -> Iterator[Request]:
        """The requests that no other process was answered in the meantime."""
        for key, request in fresh:
            self._refresh()
            if key in self._replies:
                elsewhere.append(key)
            else:
                sent.append(key)
                yield request

    def _found(
        self, wanted: dict[str, list[int]], elsewhere: deque[str]
    ) -> Iterator[tuple[int, Reply]]:
        while elsewhere:
            key = elsewhere.popleft()
            for position in wanted[key]:
                self.replayed += 1
                yield position, self._replies[key]

    def _remember(self, key: str, reply: Reply) -> None:
        line = json.dumps({"key": key, **asdict(reply)}, ensure_ascii=False) + "\n"
        with self._lock, disk_errors(self.path, "write"):
            if self._torn:  # a killed writer left half a line; ours must not be glued to it
                line, self._torn = "\n" + line, False
            data = line.encode()
            if os.write(self._file, data) != len(data):
                self._torn = True
                raise OSError(28, "No space left on device")
            if time.monotonic() - self._synced > SYNC_SECONDS:
                os.fsync(self._file)
                self._synced = time.monotonic()
            self._replies[key] = reply

    def _refresh(self) -> None:
        """Read what was written since the last look, by whichever process."""
        with self._lock, disk_errors(self.path, "read"):
            while data := os.pread(self._file, READ_BYTES, self._read_to):
                end = data.rfind(b"\n") + 1
                self._torn = end < len(data)
                if end == 0:
                    break  # half a line
                self._read_to += end
                for line in data[:end].splitlines():
                    self._learn(line)

    def _learn(self, line: bytes) -> None:
        try:
            value = json.loads(line)
            key = value.pop("key")
            self._replies.setdefault(key, Reply(**value))
        except (ValueError, TypeError, KeyError, AttributeError):
            pass  # cut short by a kill or a full disk: that request is asked again
