"""Why a reply, or one row of it, is not taken. In: words. Out: an exception. Imports nothing."""

from __future__ import annotations


class UnusableError(Exception):
    """Why a reply is not taken: `reason` for counting, `detail` for people."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail
