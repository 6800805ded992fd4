"""`potstill eval --judge`: another model says which of a run's answers is the better one.

In: a run, a judge's reference, the address of one that is behind an endpoint. Out: what it said,
kept in `judge/` of the run's folder. Heavy packages are imported when the judge is opened.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.cli_options import err
from potstill.errors import UsageError
from potstill.inference.endpoint import PREFIX, EndpointConfig, is_endpoint, model_name
from potstill.pipeline import Run, open_run

if TYPE_CHECKING:
    from potstill.inference.open import Backend

PARALLEL = 4
CONTEXT_TOKENS = 4096


@dataclass(frozen=True)
class Judge:
    """Who judges. address, key: of an endpoint, and the environment variable with its key."""

    reference: str
    address: str | None = None
    key: str | None = None

    @property
    def backend(self) -> Backend:
        """The engine that answers for it."""
        return "fake" if self.reference == "fake" else "auto"

    def endpoint(self, this: Run) -> EndpointConfig | None:
        """Where it is: the address that was given, else the endpoint of the run's own teacher.

        None for a model on this machine. Errors: UsageError where reference and address do not
        fit, or the address is none; ModelError for a variable that holds no key.
        """
        if not is_endpoint(self.reference):
            if self.address is not None or self.key is not None:
                raise UsageError(
                    f"--judge-url and --judge-key belong to a judge {PREFIX}MODEL, and this one is "
                    f"{self.reference}."
                )
            return None
        if not model_name(self.reference):
            raise UsageError(f"The judge {PREFIX} names no model.", f"Write {PREFIX}MODEL.")
        if self.address is not None:
            return _checked(self.address, self.key)
        own = this.record["recipe"]["generate"].get("endpoint")
        if own is None or self.key is not None:
            raise UsageError(
                f"The judge {self.reference} is behind an address: which?",
                "Add --judge-url http://127.0.0.1:8000/v1.",
            )
        return EndpointConfig.model_validate(own)


def _checked(address: str, key: str | None) -> EndpointConfig:
    from pydantic import ValidationError

    try:
        return EndpointConfig(base_url=address, keys=() if key is None else (key,))
    except ValidationError as error:
        raise UsageError(f"{error.errors()[0]['msg'].removeprefix('Value error, ')}.") from error


def pair_of(text: str) -> tuple[str, str]:
    """`a,b` as two names. Errors: UsageError."""
    models = tuple(part.strip() for part in text.split(","))
    if len(models) != 2 or not all(models) or models[0] == models[1]:
        raise UsageError(f"{text!r} names no two models.", "Write --pair distilled,teacher.")
    return models[0], models[1]


def read_rubric(path: Path) -> str:
    """The text of a rubric. Errors: UsageError for an empty one."""
    from potstill.core.files import disk_errors

    with disk_errors(path, "read"):
        text = path.read_text("utf-8").strip()
    if not text:
        raise UsageError(f"The rubric {path} is empty.")
    return text


def judge_answers(
    run_name: str,
    judge: Judge,
    models: tuple[str, str],
    rubric: str | None,
    limit: int | None,
    threads: int | None,
    project: Path | None,
) -> dict[str, Any]:
    """Open the judge, ask, and leave what it said in the run's folder. Replies are remembered.

    rubric: None to judge in pairs; else as `again.judge_run`.
    """
    from functools import partial

    from potstill.core.machine import usable_cores
    from potstill.evaluate.again import cases, judge_run
    from potstill.inference.keys import check_keys
    from potstill.inference.open import engine_identity, open_model
    from potstill.inference.replay import ReplayModel

    this = open_run(run_name, project)
    endpoint = judge.endpoint(this)
    if endpoint is not None:
        check_keys(endpoint)
    some = cases(
        this.artifact("evaluate").path("predictions.jsonl"),
        this.artifact("curate").path("test.jsonl"),
        models,
        limit,
    )
    opener = partial(
        open_model,
        judge.reference,
        judge.backend,
        threads=threads or usable_cores(),
        parallel=PARALLEL,
        context_tokens=CONTEXT_TOKENS,
        endpoint=endpoint,
        warn=lambda text: err().print(text, highlight=False, markup=False),
    )
    identity = engine_identity(judge.reference, judge.backend, endpoint)
    model = ReplayModel(this.folder / "judge" / "replies", identity, opener)
    try:
        with err().status(f"{judge.reference} reads {len(some)} rows, each twice"):
            return judge_run(this.folder, some, models, model, judge.reference, rubric)
    finally:
        model.close()
