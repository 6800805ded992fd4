"""Drift of a run's service: what its traffic is compared with, and what came of it so far.

In: a run, its service's gateway. Out: the watch over its traffic; for whoever looks, the windows
and alarms so far as plain data, as a page, and alarms marked as false. The one place that knows
both what a run was taught and how its traffic is kept.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.core.files import read_records, write_atomic
from potstill.errors import ModelError, PotstillError, StoreError
from potstill.generate import PromptConfig, question_in
from potstill.pipeline import Run
from potstill.records import Example
from potstill.run_folder import version_of, versions_of

if TYPE_CHECKING:
    from potstill.serve.alerts import Alerts
    from potstill.serve.gateway import Gateway
    from potstill.serve.watch import Reading, Watch
    from potstill.serve.windows import Reference

SURE = 0.5  # below that a text's likeliest language is not named
UNKNOWN = "unknown"
READ = 2000  # characters of a question that its language is told by
NOTHING = "No request was answered by the service of {} yet."


def open_watch(
    this: Run, gateway: Gateway, alerts: Alerts | None = None, serving: Run | None = None
) -> Watch:
    """The watch over a service's traffic, whose documents are open already.

    serving: the run whose student was promoted to serve, and whose rows count; default: `this`. A
    run without training rows, or with too few, is watched without being compared; the log says
    why. Errors: StoreError for a damaged store, ModelError for the encoder.
    """
    from potstill.serve.traffic import TrafficStore
    from potstill.serve.watch import Rules, Watch

    config = gateway.config
    store = TrafficStore(store_path(this), config.traffic_rows)
    reference, reason = compared_with(this, gateway, serving or this)
    return Watch(
        store,
        _reading(this, gateway),
        reference,
        Rules(config.drift_window, config.drift_level),
        gateway.figures,
        gateway.log,
        gateway.audit,
        alerts,
        lambda: gateway.engine.model,
        reason,
    )


def compared_with(this: Run, gateway: Gateway, serving: Run) -> tuple[Reference | None, str]:
    """What live questions are compared with while that run's student serves; or why with nothing,
    which the log says too. Errors: ModelError for the encoder."""
    try:
        return _reference(taught(serving), _reading(this, gateway), gateway.declines), ""
    except (PotstillError, OSError) as error:
        if isinstance(error, ModelError):
            raise
        gateway.log("drift_off", reason=str(error))
        return None, str(error)


def taught(this: Run) -> list[Example]:
    """The training rows that live questions are compared with: one for each question. Variants of
    a row are left out, because they hang together and live questions do not.

    Errors: StoreError if the run has none.
    """
    found: dict[str, Example] = {}
    for row in read_records(this.artifact("curate").path("train.jsonl"), Example):
        if row.question.strip() and row.provenance.parent is None:
            found.setdefault(row.question.strip(), row)
    return list(found.values())


def declines_of(this: Run) -> Callable[[str], bool]:
    """Whether an answer declines: in English, or in the words by which the run's rows decline.

    The words of its recipe alone where its rows are not there.
    """
    from potstill.core.refusals import REFUSAL, says_nothing

    own = {str(this.record["recipe"]["ingest"]["rows"]["refusal"])}
    with suppress(StoreError):
        rows = read_records(this.artifact("curate").path("train.jsonl"), Example)
        own |= {answer_of(row) for row in rows if row.kind == REFUSAL}
    return lambda answer: says_nothing(answer, own)


def _reading(this: Run, gateway: Gateway) -> Reading:
    from potstill.serve.watch import Reading

    prompt = PromptConfig.model_validate(this.record["recipe"]["generate"]["prompt"])
    index = gateway.corpus.index if gateway.corpus is not None else None
    encoder = gateway.embedding_model if index is not None else None
    return Reading(
        _language(),
        index.vectors if encoder is not None and index is not None else None,
        encoder or "",
        lambda turn: question_in(prompt, turn),
    )


def _reference(rows: list[Example], reading: Reading, declines: Callable[[str], bool]) -> Reference:
    from potstill.serve import windows

    some = [rows[place] for place in windows.chosen_rows(len(rows))]
    questions = [row.question.strip() for row in some]
    refused = [declines(answer_of(row)) for row in some]
    return windows.Reference(reading.sample(questions, refused), questions)


def answer_of(row: Example) -> str:
    """What the row teaches to say."""
    return row.answers[0] if row.answers else row.turns[-1].content


def _language() -> Any:
    if importlib.util.find_spec("py3langid") is None:
        return lambda text: ""

    def told(text: str) -> str:
        from potstill.core.language import likeliest

        if not any(sign.isalpha() for sign in text):
            return UNKNOWN
        code, sure = likeliest(text[:READ], "serve", "Watching the language of questions")
        return code if sure >= SURE else UNKNOWN

    return told


def store_path(this: Run) -> Path:
    """Where a run's service keeps what it answered."""
    return this.folder / "serve" / "traffic.sqlite"


def read_drift(this: Run) -> dict[str, Any]:
    """What is known of a run's traffic, also while its service runs.

    `run`, `requests` (that are kept), `off` (why nothing can be compared, or ""), `variants`
    (name -> `windows`, `alarms`, `dismissed`: alarms marked as false, `by_chance`: alarms that the
    level alone allows for, `waiting`: requests that no window holds yet, `state`: calm, alarm,
    dismissed, none), `windows` (oldest first; see `TrafficStore.windows`). Errors: StoreError for a
    damaged store.
    """
    from potstill.serve.report import summary
    from potstill.serve.traffic import open_existing

    store = open_existing(store_path(this))
    name, off = this.folder.name, _off(this)
    if store is None:
        return {"run": name, "requests": 0, "off": off, "variants": {}, "windows": []}
    with closing(store):
        return summary(name, store, off)


def _off(this: Run) -> str:
    try:
        count = len(taught(version_of(this, versions_of(this).current().version)))
    except (PotstillError, OSError) as error:
        return str(error)
    from potstill.serve.windows import FEWEST_ROWS

    few = f"{count} different training questions are too few to compare with; {FEWEST_ROWS} do."
    return few if count < FEWEST_ROWS else ""


def dismiss(this: Run, alarm: int) -> None:
    """Mark an alarm as false. Errors: UsageError if there is no such alarm, StoreError."""
    from potstill.serve.traffic import open_existing

    store = open_existing(store_path(this))
    if store is None:
        raise StoreError(NOTHING.format(this.folder.name), "Start it with: potstill serve RUN")
    with closing(store):
        store.dismiss(alarm)


def write_drift_page(this: Run, file: Path) -> None:
    """Write the page about a run's traffic. Errors: StoreError."""
    from potstill.serve.drift_page import page

    write_atomic(file, page(read_drift(this)))
