"""How many tokens a prompt has, before its model has said so.

In: requests, and what the model counted for earlier ones. Out: a number that is seldom too small.
Needs no tokenizer, for none may be here.
"""

from __future__ import annotations

import threading

from potstill.inference.base import Request

FIRST_BYTES = 3.0  # of a token, before anything is known; prose has more of them, lists have fewer
TURN_TOKENS = 8  # what a chat template puts around a turn
MARGIN = 1.05


class PromptSizes:
    """Learns from each reply how many bytes of prompts make a token; the worst case counts."""

    def __init__(self) -> None:
        self._rate = 1 / FIRST_BYTES
        self._seen = 0.0
        self._lock = threading.Lock()

    def tokens(self, request: Request) -> int:
        """About how many tokens the prompt has, rather too many."""
        return int(_bytes(request) * self._rate + TURN_TOKENS * len(request.messages)) + 1

    def learn(self, request: Request, tokens: int) -> None:
        """The model counted so many."""
        if tokens <= 0:
            return
        with self._lock:
            self._seen = max(self._seen, tokens / max(1, _bytes(request)))
            self._rate = self._seen * MARGIN


def text_tokens(text: str) -> int:
    """About how many tokens a text has that no model has counted."""
    return -(-len(text.encode()) // 4)


def _bytes(request: Request) -> int:
    return sum(len(turn.content.encode()) for turn in request.messages)
