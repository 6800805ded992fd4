"""Questions answered through llama.cpp, against the clock; as a process of its own also by memory.

    python benchmarks/answering.py MODEL < prompts.json

In: a model's reference; as a process a JSON list of prompts on standard input. Out: seconds and
replies; as a process a JSON object with seconds, tokens, and the most memory that it held. Imports
nothing that trains, which would be most of that memory.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence

from potstill.core.machine import own_peak_bytes, usable_cores
from potstill.inference.base import Reply, Request
from potstill.inference.open import open_model
from potstill.records import Turn

ANSWER_TOKENS = 24
PARALLEL = 4
"""Short answers: reading is most of the work, and more at once are read in smaller pieces."""


def through_llamacpp(
    reference: str, prompts: Sequence[str], tokens: int = ANSWER_TOKENS, parallel: int = PARALLEL
) -> tuple[float, list[Reply]]:
    """Seconds and replies, in the prompts' order; the model is opened before the clock starts."""
    requests = [Request((Turn(role="user", content=one),), max_tokens=tokens) for one in prompts]
    with open_model(
        reference,
        "llamacpp",
        threads=usable_cores(),
        parallel=parallel,
        context_tokens=640 + tokens,
    ) as model:
        list(model.complete(requests[:1]))
        began = time.perf_counter()
        replies = dict(model.complete(requests))
        return time.perf_counter() - began, [replies[n] for n in range(len(requests))]


if __name__ == "__main__":
    seconds, replies = through_llamacpp(sys.argv[1], json.load(sys.stdin))
    written = sum(one.completion_tokens for one in replies)
    print(json.dumps({"seconds": seconds, "tokens": written, "memory": own_peak_bytes()}))
