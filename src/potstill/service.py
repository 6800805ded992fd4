"""Puts a run behind the gateway: its exported student, its documents, the words it was taught.

In: a run, settings. Out: a service that answers until it is stopped. The one place that knows both
what a run holds and how it is served. Which version of the student serves is in the run's
versions.json; a promotion there is taken while the service runs.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from potstill.core.claims import claimed
from potstill.core.extras import check_installed
from potstill.core.files import read_records
from potstill.core.machine import usable_cores
from potstill.curate.personal import masked
from potstill.drifting import compared_with, declines_of, open_watch
from potstill.errors import InputError, UsageError
from potstill.generate import PromptConfig, student_turn
from potstill.ingest import IngestConfig
from potstill.pipeline import Run, open_run
from potstill.records import Chunk
from potstill.run_folder import version_of, versions_of
from potstill.serve.auth import KEYS
from potstill.serve.versions import Serving

if TYPE_CHECKING:
    from potstill.serve.engine import Engine
    from potstill.serve.feedback import FeedbackStore
    from potstill.serve.gateway import Gateway, ServeConfig
    from potstill.serve.lanes import Assign, Canary
    from potstill.serve.monitor import Log

ENGINE_KEY = "POTSTILL_ENGINE_KEY"
DOCUMENT_SECONDS = 300.0
"""An added document that takes longer to read is refused; a run's own may take hours."""


def serve_run(
    this: Run,
    config: ServeConfig | None = None,
    *,
    file: str | None = None,
    keys: Path | None = None,
    passages: bool = True,
    encoder: str | None = None,
    engine: str | None = None,
    engine_model: str = "",
    alert: str | None = None,
    candidate: str | None = None,
    share: float = 0.1,
    assign: Assign = "key",
    started: Callable[[str], None] | None = None,
) -> None:
    """Serve the student of a finished run until SIGTERM or Ctrl-C.

    config: a `potstill.serve.gateway.ServeConfig`. file: which exported file, by name (GGUF; ONNX
    of a run of task spans); default: the one that was promoted, else the smallest. keys: the key
    file; default: keys.json of the run's project, in force as soon as it holds a key. passages:
    answer MODEL:documents, or a question without a context, from the run's documents. encoder: a
    model reference for searching by meaning too. engine: the base URL of another engine with
    OpenAI's API, instead of llama.cpp; its key is read from POTSTILL_ENGINE_KEY. alert: an address
    that is told of drift, with the key in POTSTILL_ALERT_KEY if there is one. candidate: another
    run of the project whose student gets that share of the requests, by key (or conversation) or
    request by request (`assign`). started: told the address.
    Errors: UsageError, StoreError, ModelError, MissingExtraError, before anything is loaded where
    that can be known.
    """
    check_packages()
    from potstill.serve.alerts import Alerts
    from potstill.serve.auth import KeyFile
    from potstill.serve.gateway import Gateway, ServeConfig
    from potstill.serve.monitor import Figures, Log
    from potstill.serve.server import is_loopback, listen, serve
    from potstill.serve.span_engine import SpanEngine
    from potstill.serve.tracing import tracing_from_environment

    settings = config or ServeConfig()
    key_file = KeyFile(keys or this.project / KEYS)
    live = [one for one in key_file.listed() if not one.revoked]
    if keys is not None and not live:
        raise UsageError(
            f"The key file {keys} holds no live key.", "Make one with: potstill keys add NAME"
        )
    if not is_loopback(settings.host) and not live:
        raise UsageError(
            f"Listening at {settings.host} needs an API key: others can reach that address.",
            "Make one with: potstill keys add NAME",
        )
    alerts = Alerts(alert) if alert is not None else None
    log, figures = Log(), Figures()
    folder = this.folder / "serve"
    serving = versions_of(this).current()
    canary = _canary(this, settings, candidate, share, assign, engine, serving.version, log)

    def opened(version: Serving) -> Engine:
        run, chosen = version_of(this, version.version), file or version.file or None
        _check_task(this, run)
        return _engine(run, settings, chosen, None, "", log, figures.restarts.inc)

    one = (
        opened(serving)
        if engine is None
        else _engine(this, settings, file, engine, engine_model, log, figures.restarts.inc)
    )
    if isinstance(one, SpanEngine):  # it reads no more at once; the queue is the gateway's
        settings = settings.model_copy(update={"parallel": one.at_once})
    swaps = engine is None and file is None  # what was chosen by hand is not changed behind it
    with ExitStack() as held:
        held.enter_context(claimed(folder, f"The service of the run {this.folder.name}"))
        listening = held.enter_context(listen(settings))
        shutil.rmtree(folder / "uploads", ignore_errors=True)  # what a killed service left half
        gateway = Gateway(
            name=this.folder.name,
            config=settings,
            engine=one,
            folder=folder,
            keys=key_file if key_file.listed() else None,
            ask=_asked(this),
            feedback=_feedback(folder),
            mask=masked,
            log=log,
            figures=figures,
            embedding_model=encoder,
            tracing=tracing_from_environment(this.folder.name, log),
            version=serving.version if engine is None else engine_model or "engine",
            canary=canary,
            versions=versions_of(this) if swaps else None,
            open_version=opened,
            declines=declines_of(this),
        )
        if passages:
            _open_library(gateway, this, encoder)
        gateway.traffic = open_watch(this, gateway, alerts, version_of(this, serving.version))
        gateway.compared = lambda version: (
            lambda: compared_with(this, gateway, version_of(this, version))
        )
        serve(gateway, listening, started or (lambda address: None))


def check_packages() -> None:
    """Errors: MissingExtraError, naming the extra of the service, if a package of it is missing."""
    for module in ("fastapi", "uvicorn", "prometheus_client", "httpx2", "numpy", "jinja2"):
        check_installed(module, "Serving a student", "serve")


def _canary(
    this: Run,
    config: ServeConfig,
    candidate: str | None,
    share: float,
    assign: Assign,
    engine: str | None,
    current: str,
    log: Log,
) -> Canary | None:
    from potstill.serve.lanes import Canary, Lane

    if candidate is None:
        return None
    if engine is not None:
        raise UsageError("--candidate and --engine exclude each other.")
    if not 0 < share < 1:
        raise UsageError(f"--share {share:g} has to lie between 0 and 1.")
    if assign not in ("key", "request"):
        raise UsageError(f"There is no --assign {assign}.", "Assign by key or by request.")
    run = open_run(candidate, this.project)
    _check_task(this, run)
    name = run.folder.resolve().name
    if name == current:
        raise UsageError(f"{name} serves already: it is no candidate beside itself.")
    one = _engine(run, config, None, None, "", log, lambda: None)
    lane = Lane(name, one, "" if run.task == "spans" else run.exported().name)
    return Canary(lane, share, assign, int(this.record["seed"]))


def _engine(
    this: Run,
    config: ServeConfig,
    file: str | None,
    address: str | None,
    model: str,
    log: Log,
    on_crash: Callable[[], None],
) -> Engine:
    from potstill.serve.engine import EngineSizes, LocalEngine, RemoteEngine
    from potstill.serve.span_engine import SpanEngine

    spans = this.task == "spans"
    if address is not None:
        if spans:
            raise UsageError("--engine is for students that write; this one marks answers.")
        if file is not None:
            raise UsageError("--file and --engine exclude each other.")
        return RemoteEngine(address, model, os.environ.get(ENGINE_KEY), config.parallel)

    def tell(event: str, **fields: object) -> None:
        if event == "engine_ended":
            on_crash()
        log(event, **fields)

    threads = config.threads or usable_cores()
    if spans:
        folder = this.folder / "export" / "safetensors"
        return SpanEngine(folder, this.exported(file), threads, config.parallel, tell)
    sizes = EngineSizes(threads, config.parallel, config.context_tokens)
    return LocalEngine(this.exported(file), sizes, tell)


def _check_task(this: Run, other: Run) -> None:
    """Errors: UsageError for a version that does something else than this one."""
    if other.task != this.task:
        raise UsageError(
            f"{other.folder.name} is of task {other.task}, and {this.folder.name} of {this.task}: "
            "one service does one of them."
        )


def _asked(this: Run) -> Callable[[str, str], str]:
    prompt = PromptConfig.model_validate(this.record["recipe"]["generate"]["prompt"])
    return lambda passage, question: student_turn(prompt, passage, question)


def _feedback(folder: Path) -> FeedbackStore:
    from potstill.serve.feedback import FeedbackStore

    return FeedbackStore(folder / "feedback.sqlite")


def _open_library(gateway: Gateway, this: Run, encoder: str | None) -> None:
    from potstill.serve.corpus import Corpus

    ingest = this.artifact("ingest")
    if this.task == "spans":  # what came with ready-made rows can be read too
        from potstill.models.spans.rows import passages

        chunks: Iterable[Chunk] = passages(ingest).values()
    else:
        chunks = read_records(ingest.path("chunks.jsonl"), Chunk)
    gateway.corpus = Corpus(chunks, gateway.folder / "documents", _reader(this), encoder)


def _reader(this: Run) -> Callable[[Path, str, Path], list[Chunk]]:
    """Reads one more document as the run read its own: the same checks and sizes, in a process of
    its own. Chunks are measured by the student's tokenizer."""
    recipe = IngestConfig.model_validate(this.record["recipe"]["ingest"])
    config = recipe.model_copy(
        update={"file_seconds": min(recipe.file_seconds, DOCUMENT_SECONDS), "processes": 1}
    )
    tokenizer = this.folder / "export" / "safetensors" / "tokenizer.json"

    def read(file: Path, name: str, work: Path) -> list[Chunk]:
        from potstill.core.files import file_digest
        from potstill.ingest.content import UnusableError
        from potstill.ingest.desk import Desks
        from potstill.ingest.one import Task

        work.mkdir(parents=True, exist_ok=True)
        task = Task(name, file, file_digest(file)[:16])
        try:
            with Desks(config, work, tokenizer, 1, 1) as desks:
                desks.start(task)
                folder = desks.wait(task, lambda done, of, unit: None)
        except UnusableError as error:
            raise InputError(f"{name} cannot be used ({error.reason}): {error.detail}.") from error
        chunks = list(read_records(folder / "chunks.jsonl", Chunk))
        if not chunks:
            raise InputError(f"{name} holds no passage that could be found.")
        return chunks

    return read
