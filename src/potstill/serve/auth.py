"""API keys: made, listed, revoked, and checked.

In: a file with one record a key, and what a client presents. Out: the key's name, scopes and
limits, or a refusal. A key is 256 random bits; the file holds a salted HMAC-SHA-256 of it, from
which nobody gets it back, and nothing else that is secret. A check takes the same steps whether
the key is unknown, revoked, too long or right. Knows no HTTP.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from filelock import FileLock

from potstill.core.files import disk_errors, read_json, write_json
from potstill.errors import StoreError, UsageError
from potstill.serve.limits import KeyLimits
from potstill.serve.problems import ApiError

PREFIX = "pst"
SCOPES = ("chat", "documents", "feedback", "metrics")
"""chat: models, completions, embeddings. documents: add and list documents. feedback: say what an
answer was worth. metrics: read the figures and the page about drift."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LONGEST = 200  # characters of a presented key that are looked at
FORM = re.compile(rf"{PREFIX}_([0-9a-f]{{12}})_([A-Za-z0-9_-]{{43}})")
REFUSED = "The API key is missing, unknown or revoked."


@dataclass(frozen=True)
class ApiKey:
    """A key as the file has it. `id` is public: logs and metrics name it."""

    id: str
    name: str
    salt: str
    digest: str
    scopes: tuple[str, ...]
    limits: KeyLimits = field(default_factory=KeyLimits)
    created: str = ""
    revoked: str = ""


ANYONE = ApiKey("", "", "", "", SCOPES)
"""Who asks where no key is needed."""
_NO_FORM: re.Match[str] = cast("re.Match[str]", FORM.fullmatch(f"{PREFIX}_{'0' * 12}_{'0' * 43}"))
"""Checked in the place of what is no key at all, so that this takes as long."""
_NOBODY = ApiKey("", "", secrets.token_hex(16), secrets.token_hex(32), ())


class KeyFile:
    """The keys in a file, read again when it changes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, int, int] | None = None
        self._keys: dict[str, ApiKey] = {}

    def listed(self) -> list[ApiKey]:
        """All keys, the revoked too. Errors: StoreError if the file is damaged."""
        self._refresh()
        return list(self._keys.values())

    def add(self, name: str, scopes: tuple[str, ...], limits: KeyLimits) -> str:
        """Make a key; returns it, which is the only time that it can be seen.

        Errors: UsageError for a name that is taken or no name, or an unknown scope.
        """
        if not NAME.fullmatch(name):
            raise UsageError(
                f"{name!r} is no name for a key.",
                "Use up to 64 letters, digits, dots, dashes and underscores.",
            )
        unknown = sorted(set(scopes) - set(SCOPES))
        if unknown or not scopes:
            raise UsageError(
                f"There is no scope {', '.join(unknown) or 'given'}.",
                f"Scopes: {', '.join(SCOPES)}.",
            )
        identity, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
        salt = secrets.token_hex(16)
        key = ApiKey(identity, name, salt, _digest(salt, secret), tuple(scopes), limits, _now())
        with self._locked():
            if any(one.name == name and not one.revoked for one in self.listed()):
                raise UsageError(f"There is a key {name} already.", "Revoke it, or choose a name.")
            self._write([*self._keys.values(), key])
        return f"{PREFIX}_{identity}_{secret}"

    def revoke(self, name: str) -> ApiKey:
        """End a key, by its name or id; a running server hears of it. Errors: UsageError."""
        with self._locked():
            live = [one for one in self.listed() if not one.revoked and name in (one.name, one.id)]
            if not live:
                raise UsageError(
                    f"There is no live key {name}.", "See them with: potstill keys list"
                )
            ended = ApiKey(**(vars(live[0]) | {"revoked": _now()}))
            self._write([ended if one.id == ended.id else one for one in self._keys.values()])
        return ended

    def check(self, presented: str, scope: str) -> ApiKey:
        """The key that was presented, if it may do that.

        Errors: ApiError 401 for no valid key, 403 for a valid one without the scope.
        """
        self._refresh()
        form = FORM.fullmatch(presented[:LONGEST])
        identity, secret = (form or _NO_FORM).groups()
        key = self._keys.get(identity, _NOBODY)
        right = hmac.compare_digest(_digest(key.salt, secret), key.digest)
        # A tuple is made whole: nothing is skipped because of what came before it.
        fits = (right, form is not None, len(presented) <= LONGEST, not key.revoked)
        if not all(fits):
            raise ApiError(401, REFUSED, "invalid_api_key")
        if scope not in key.scopes:
            raise ApiError(403, f"This API key has not the scope {scope}.", "missing_scope")
        return key

    def _refresh(self) -> None:
        try:
            found = self.path.stat()
        except OSError:
            self._seen, self._keys = None, {}
            return
        seen = (found.st_mtime_ns, found.st_size, found.st_ino)
        if seen != self._seen:
            self._keys = {one.id: one for one in map(_key, self._rows())}
            self._seen = seen

    def _rows(self) -> list[dict[str, Any]]:
        with disk_errors(self.path, "read"):
            rows = read_json(self.path)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise self._damaged()
        return rows

    def _damaged(self) -> StoreError:
        return StoreError(f"The key file {self.path} is damaged.", "Restore it, or make new keys.")

    def _locked(self) -> FileLock:
        with disk_errors(self.path.parent, "create"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(self.path.with_name(f".{self.path.name}.lock"))

    def _write(self, keys: list[ApiKey]) -> None:
        before = os.umask(0o077)  # nobody else reads it, from the first byte on
        try:
            write_json(self.path, [asdict(one) for one in keys])
        finally:
            os.umask(before)


def _key(row: dict[str, Any]) -> ApiKey:
    try:
        fields = dict(row)
        fields["limits"] = KeyLimits(**fields["limits"])
        fields["scopes"] = tuple(fields["scopes"])
        return ApiKey(**fields)
    except (TypeError, KeyError) as error:
        raise StoreError("The key file is damaged.", "Restore it, or make new keys.") from error


def _digest(salt: str, secret: str) -> str:
    return hmac.new(
        bytes.fromhex(salt), secret.encode("utf-8", "replace"), hashlib.sha256
    ).hexdigest()


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
