"""A model hub in memory, asked by huggingface_hub itself: its requests end here.

In: repositories. Out: the answers that the hub gives for them, errors included (the status and the
X-Error-Code that it sends). Of Potstill it knows only where answers are kept for a minute.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_secretOfTheUser"


@dataclass
class Repository:
    """gated: its terms must be accepted. granted: the logins that have. broken: status that every
    request for it gets."""

    files: dict[str, bytes]
    gated: bool = False
    granted: tuple[str, ...] = ()
    licence: str = "apache-2.0"
    parameters: int | None = None
    broken: int = 0


@dataclass
class HubStandIn:
    """Answers as the hub does; `asked` are the requests about models that reached it."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    reachable: bool = True
    known_tokens: tuple[str, ...] = (TOKEN,)

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        path = request.url.path
        if not self.reachable:
            raise httpx2.ConnectError("no route to the hub")
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token and token not in self.known_tokens:
            words = {"X-Error-Message": "Invalid credentials in Authorization header"}
            return httpx2.Response(401, headers=words)
        found = re.match(r"(?:/api/models)?/((?!api/)[^/]+/[^/]+)(?:/(.*))?$", path)
        if found is None:  # nothing about a model
            return httpx2.Response(200, json={})
        self.asked.append(f"{request.method} {path}")
        repository = self.repositories.get(found[1])
        if repository is None:
            return httpx2.Response(404, headers={"X-Error-Code": "RepoNotFound"})
        if repository.broken:
            return httpx2.Response(repository.broken)
        rest = found[2] or ""
        revision = re.match(r"(?:revision|tree|resolve)/([^/]+)", rest)
        if revision is not None and revision[1] not in ("main", COMMIT):
            return httpx2.Response(404, headers={"X-Error-Code": "RevisionNotFound"})
        if rest.startswith("tree/"):
            return httpx2.Response(200, json=[self._entry(one) for one in repository.files.items()])
        if path.startswith("/api/"):
            return httpx2.Response(200, json=self._described(found[1], repository))
        if repository.gated and token not in repository.granted:
            status = 403 if token else 401
            return httpx2.Response(status, headers={"X-Error-Code": "GatedRepo"})
        return self._file(request, repository, rest.split("/", 2)[2])

    def _entry(self, file: tuple[str, bytes]) -> dict[str, Any]:
        name, content = file
        return {"type": "file", "path": name, "size": len(content), "oid": _digest(content)}

    def _described(self, name: str, repository: Repository) -> dict[str, Any]:
        count = repository.parameters
        return {
            "id": name,
            "modelId": name,
            "sha": COMMIT,
            "private": False,
            "gated": "manual" if repository.gated else False,
            "cardData": {"license": repository.licence},
            "safetensors": {"parameters": {"BF16": count}, "total": count} if count else None,
            "siblings": [
                {"rfilename": name, "size": len(content), "blobId": _digest(content)}
                for name, content in repository.files.items()
            ],
        }

    def _file(self, request: httpx2.Request, repository: Repository, name: str) -> httpx2.Response:
        content = repository.files.get(name)
        if content is None:
            return httpx2.Response(404, headers={"X-Error-Code": "EntryNotFound"})
        headers = {"ETag": f'"{_digest(content)}"', "X-Repo-Commit": COMMIT}
        if request.method == "HEAD":
            return httpx2.Response(200, headers={**headers, "Content-Length": str(len(content))})
        return httpx2.Response(200, headers=headers, content=content)


def forget() -> None:
    """As if the minute were over for which an answer is kept."""
    from potstill.models import hub

    hub._asked.cache_clear()


def _digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@contextmanager
def standing_in(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    """A hub without repositories; its cache in that folder, nobody logged in."""
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    stand_in = HubStandIn()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    before = _http._GLOBAL_CLIENT_FACTORY
    huggingface_hub.set_client_factory(
        lambda: httpx2.Client(transport=httpx2.MockTransport(stand_in))
    )
    forget()
    try:
        yield stand_in
    finally:
        huggingface_hub.set_client_factory(before)
        forget()
