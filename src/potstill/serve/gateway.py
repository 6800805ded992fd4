"""What the service is made of, and the settings it runs with.

In: an engine and what stands beside it. Out: one object that the routes share. Runs nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from potstill.serve.admission import Gate
from potstill.serve.auth import KeyFile
from potstill.serve.corpus import Corpus
from potstill.serve.engine import Engine
from potstill.serve.feedback import FeedbackStore
from potstill.serve.lanes import Canary, Lane, Lanes, OpenVersion
from potstill.serve.limits import Limiter
from potstill.serve.monitor import Audit, Figures, Log
from potstill.serve.problems import ApiError
from potstill.serve.span_engine import SpanEngine
from potstill.serve.tracing import Tracing
from potstill.serve.trial import Trial
from potstill.serve.versions import Versions
from potstill.serve.watch import Compared, Watch

DOCUMENTS = ":documents"
"""After the model's name: answer from the documents, with citations."""
REMEMBERED = 4096
REMEMBERED_CHARACTERS = 32_000_000

Ask = Callable[[str, str], str]
"""(passage, question) -> the user turn as the student was taught it."""


class ServeConfig(BaseModel):
    """How the service listens and what it allows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="Address to listen at.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen at; 0: a free one.")
    parallel: int = Field(8, ge=1, le=256, description="Requests that the engine works on at once.")
    context_tokens: int = Field(
        2048, ge=256, le=1_000_000, description="Longest prompt and answer together, of each."
    )
    threads: int | None = Field(None, ge=1, description="Processor threads; default: all cores.")
    answer_tokens: int = Field(
        512, ge=1, description="Longest answer where a request names no max_tokens."
    )
    queue: int = Field(64, ge=0, description="Requests that may wait; more are told to come back.")
    queue_seconds: float = Field(30.0, gt=0, description="Longest wait in the queue.")
    deadline_seconds: float = Field(
        120.0, gt=0, description="Longest time of a request, from its start in the engine."
    )
    body_bytes: int = Field(1_000_000, ge=1000, description="Largest body of a request.")
    body_seconds: float = Field(20.0, gt=0, description="A request must be sent within this time.")
    stall_seconds: float = Field(
        30.0, gt=0, description="A client that takes nothing for so long is let go."
    )
    document_bytes: int = Field(50_000_000, ge=1, description="Largest document that is added.")
    drain_seconds: float = Field(
        30.0, ge=0, description="After SIGTERM, answers under way may take so long to finish."
    )
    cors: tuple[str, ...] = Field((), description="Web origins whose pages may ask; none: no page.")
    log_prompts: bool = Field(
        False, description="Write prompts and answers into the log, personal data masked."
    )
    traffic_rows: int = Field(
        50_000, ge=1000, description="Answered requests whose figures are kept; the newest."
    )
    drift_window: int = Field(
        100,
        ge=20,
        le=1000,
        description="Requests that are compared with the training rows at once.",
    )
    drift_level: float = Field(
        0.01, gt=0, lt=0.5, description="How likely a window without drift may raise an alarm."
    )
    confidence: bool = Field(
        False, description="Ask the engine for log-probabilities, to watch how sure answers are."
    )


@dataclass(frozen=True)
class Answered:
    """An answer that was given, for whoever says what it was worth."""

    key: str
    model: str
    messages: list[dict[str, str]]
    answer: str
    citations: list[dict[str, Any]]
    variant: str = ""
    """The version that gave it."""

    @property
    def size(self) -> int:
        """Characters."""
        return len(self.answer) + sum(len(one["content"]) for one in self.messages)


class Memory:
    """The newest answers, in bounded memory."""

    def __init__(self) -> None:
        self._answers: OrderedDict[str, Answered] = OrderedDict()
        self._size = 0

    def keep(self, response: str, answered: Answered) -> None:
        """Remember one; the oldest are forgotten."""
        self._answers[response] = answered
        self._size += answered.size
        while len(self._answers) > REMEMBERED or self._size > REMEMBERED_CHARACTERS:
            _, old = self._answers.popitem(last=False)
            self._size -= old.size

    def find(self, response: str, key: str) -> Answered:
        """Errors: ApiError 404 if it is not known, or was given to another key."""
        found = self._answers.get(response)
        if found is None or found.key != key:
            raise ApiError(
                404,
                f"There is no response {response[:64]}: feedback is taken for the newest "
                f"{REMEMBERED} answers that this server gave to this key.",
                "response_not_found",
                "response",
            )
        return found


@dataclass
class Gateway:
    """All that a request may need. keys None: nobody needs one."""

    name: str
    config: ServeConfig
    engine: Engine
    folder: Path
    keys: KeyFile | None
    ask: Ask
    feedback: FeedbackStore
    corpus: Corpus | None = None
    embedding_model: str | None = None
    traffic: Watch | None = None
    mask: Callable[[str], str] = str
    log: Log = field(default_factory=Log)
    figures: Figures = field(default_factory=Figures)
    tracing: Tracing = field(default_factory=Tracing)
    draining: bool = False
    version: str = ""
    """Of the engine; "": the name."""
    canary: Canary | None = None
    versions: Versions | None = None
    open_version: OpenVersion | None = None
    """With `versions`: a promotion is taken without a restart."""
    declines: Callable[[str], bool] = lambda answer: False
    """Whether an answer says that it has none."""
    compared: Callable[[str], Compared] | None = None
    """Version -> what makes that which its live questions are compared with."""

    def __post_init__(self) -> None:
        self.audit = Audit(self.folder / "audit.jsonl", self.log)
        self.trial = Trial(self)
        self.lanes = Lanes(
            Lane(self.version or self.name, self.engine),
            self.canary,
            tell=self._tell,
            switched=self._serve_with,
            drain_seconds=self.config.deadline_seconds,
        )
        self.gate = Gate(self.config.parallel, self.config.queue, self.config.queue_seconds)
        self.limiter = Limiter()
        self.memory = Memory()
        figures = self.figures
        figures.watch(figures.in_flight, lambda: self.gate.running)
        figures.watch(figures.queue, lambda: self.gate.waiting)
        figures.watch(figures.ready, lambda: float(self.ready))
        figures.watch(figures.candidate_ready, lambda: float(self.lanes.candidate_ready))
        figures.watch(figures.passages, lambda: len(self.corpus) if self.corpus else 0)

    def _tell(self, event: str, **fields: Any) -> None:
        self.log(event, **fields)
        self.audit(event, **fields)

    def _serve_with(self, lane: Lane) -> None:
        self.engine, self.version = lane.engine, lane.version
        if self.traffic is not None and self.compared is not None:
            self.traffic.compare_with(self.compared(lane.version))

    @property
    def ready(self) -> bool:
        """Whether a new request would be answered."""
        return self.engine.ready and not self.draining

    @property
    def models(self) -> list[str]:
        """The names under which the student can be asked."""
        alone = self.corpus is None or isinstance(self.engine, SpanEngine)
        return [self.name] if alone else [self.name, self.name + DOCUMENTS]

    def check_model(self, model: str) -> None:
        """Errors: ApiError 404 names those that there are."""
        if model not in self.models:
            raise ApiError(
                404,
                f"There is no model {model[:80]!r} here; there is {' and '.join(self.models)}.",
                "model_not_found",
                "model",
            )
