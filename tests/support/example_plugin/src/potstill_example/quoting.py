"""A teacher without weights: its questions and answers are words of the passage.

It wraps an engine that is there already, as a backend for another runtime would.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from potstill.plugins import TextModel


class Quoting:
    """MODEL: nothing, or `garbage` for one that answers nothing usable."""

    version = "1"

    def identity(self, model: str) -> str:
        return f"words {model}"

    def open(self, model: str, *, threads: int, parallel: int, context_tokens: int) -> TextModel:
        from potstill.inference.fake import FakeModel

        if model not in ("", "garbage"):
            raise ValueError(f"there is no model {model}")
        return FakeModel(garbage=model == "garbage")


TEACHER = Quoting()
