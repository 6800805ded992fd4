"""What is known of a run's service: its traffic, how fast it answered, drift, feedback, versions.

In: the files that `potstill serve` keeps beside the run. Out: plain figures and pictures, also
while the service runs. Starts and changes nothing. Knows no page.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from potstill import display
from potstill.core.charts import Line, line_chart
from potstill.core.files import read_json
from potstill.drifting import read_drift, store_path
from potstill.errors import InputError, StoreError
from potstill.improve import compare_traffic, question_of, versions_of
from potstill.improve.rows import ABOUT
from potstill.serve.drift_page import STATES, when
from potstill.serve.feedback import read_feedback
from potstill.serve.review import right_answer
from potstill.serve.traffic import Row, open_existing
from potstill.serve.windows import SIGNALS
from potstill.studio.runs import RunView, all_runs
from potstill.studio.session import Studio

LOOKED_AT = 5000
"""Newest requests that the figures and pictures are of."""
POINTS = 30
SHORTEST = 60.0
"""Seconds of one point of a picture: two requests within a second are no rate of 120 a minute."""
LISTED = 100
COLOURS = ("m-distilled", "m-finetuned", "m-undistilled", "m-teacher", "m-other")


@dataclass(frozen=True)
class Said:
    """One row of feedback. right: what should have been answered, as far as somebody said so."""

    id: str
    when: str
    state: str
    thumb: str
    question: str
    answer: str
    right: str
    comment: str
    note: str


def figures_of(studio: Studio, view: RunView) -> dict[str, Any]:
    """All that the page shows. Errors: StoreError for a damaged file."""
    rows = _rows(view)
    drift = read_drift(view.run)
    said = [_said(view, one) for one in read_feedback(_folder(view) / "feedback.sqlite")]
    order = {"new": 0, "accepted": 1, "rejected": 2}
    said.sort(key=lambda one: one.when, reverse=True)
    said.sort(key=lambda one: order.get(one.state, 3))
    return {
        "kept": drift["requests"],
        "last": rows[-1].time if rows else None,
        "variants": [_variant(name, rows) for name in dict.fromkeys(one.variant for one in rows)],
        "charts": charts_of(rows),
        "drift": [(name, one, STATES[one["state"]]) for name, one in drift["variants"].items()],
        "drift_off": drift["off"],
        "alarms": [_alarm(one) for one in reversed(drift["windows"]) if one["alarm"]][:LISTED],
        "said": said[:LISTED],
        "states": Counter(one.state for one in said),
        "versions": versions(view),
        "trial": _trial(view),
        "candidates": candidates(studio, view),
    }


def _folder(view: RunView) -> Path:
    return view.folder / "serve"


def _rows(view: RunView) -> list[Row]:
    store = open_existing(store_path(view.run))
    if store is None:
        return []
    with closing(store):
        return store.newest(LOOKED_AT)


def _variant(name: str, rows: Sequence[Row]) -> dict[str, Any]:
    """Of one version: requests, how long half and 95% of them took at most, share that declined."""
    own = [one for one in rows if one.variant == name]
    seconds = sorted(one.seconds for one in own)
    first = sorted(one.first_token for one in own if one.first_token is not None)
    return {
        "name": name,
        "requests": len(own),
        "half": _time(at_most(seconds, 0.5)),
        "most": _time(at_most(seconds, 0.95)),
        "first": _time(at_most(first, 0.5)) if first else "",
        "declined": f"{100 * sum(one.refused for one in own) / len(own):.1f}%",
        "tokens": display.number(sum(one.answer_tokens for one in own) / len(own)),
    }


def at_most(ordered: Sequence[float], share: float) -> float:
    """The smallest of the sorted values that at least this share of them does not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _time(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def charts_of(rows: Sequence[Row]) -> list[Markup]:
    """Requests a minute, and how long half and 95% of them took, over the time looked at. None of
    requests within two minutes, which make no line."""
    if not rows or rows[-1].time - rows[0].time < 2 * SHORTEST:
        return []
    began, ended = rows[0].time, rows[-1].time
    width = max(SHORTEST, (ended - began) / POINTS)
    bins: dict[int, list[Row]] = {}
    for one in rows:
        bins.setdefault(int((one.time - began) / width), []).append(one)
    hours = ended - began > 2 * 3600
    unit = 3600 if hours else 60
    label = f"{'hours' if hours else 'minutes'} since {when(began)}"
    places = range(int((ended - began) / width))  # the last one is not over
    traffic = [(place * width / unit, 60 * len(bins.get(place, ())) / width) for place in places]
    slow = {
        share: [
            (place * width / unit, 1000 * at_most(sorted(one.seconds for one in found), share))
            for place, found in sorted(bins.items())
        ]
        for share in (0.5, 0.95)
    }
    charts = [
        line_chart(
            "Traffic", [Line("requests", COLOURS[0], traffic, "train")], label, "requests a minute"
        ),
        line_chart(
            "Latency",
            [
                Line("half of them", COLOURS[0], slow[0.5], "train"),
                Line("95% of them", COLOURS[3], slow[0.95], "validation"),
            ],
            label,
            "milliseconds at most, whole answer",
        ),
    ]
    return [chart for chart in charts if chart]


def _alarm(window: dict[str, Any]) -> dict[str, Any]:
    moved = [SIGNALS[one["name"]] for one in window["verdict"]["signals"] if one["alarm"]]
    return {
        "id": window["id"],
        "time": window["time"],
        "variant": window["variant"],
        "moved": ", ".join(moved),
        "dismissed": window["dismissed"] is not None,
    }


def _said(view: RunView, row: dict[str, Any]) -> Said:
    return Said(
        id=row["id"],
        when=str(row["time"]),
        state=str(row["state"]),
        thumb=str(row["thumb"] or ""),
        question=question_of(view.run, row),
        answer=str(row["answer"]),
        right=right_answer(row),
        comment=str(row["comment"] or row["flag"] or ""),
        note=str(row["note"] or ""),
    )


def versions(view: RunView) -> dict[str, Any]:
    """What serves, what served before it, and candidates with what the gate says."""
    state = versions_of(view.run).read()
    serving = state["serving"]
    judged = [
        {
            "name": name,
            "gate": one["gate"]["state"],
            "reasons": one["gate"]["reasons"],
            "from": one["from"],
            "fits": one["from"] == serving[-1]["version"],
        }
        for name, one in state["candidates"].items()
        if name not in {past["version"] for past in serving}
    ]
    return {
        "serves": serving[-1]["version"],
        "before": serving[-2]["version"] if len(serving) > 1 else "",
        "candidates": judged,
        "history": list(reversed(state["history"]))[:20],
    }


def candidates(studio: Studio, view: RunView) -> list[RunView]:
    """The runs that were begun to improve this one, the last one first."""
    found = []
    for one in all_runs(studio):
        with suppress(StoreError, OSError, AttributeError):
            if read_json(one.folder / "improve" / ABOUT).get("run") == view.name:
                found.append(one)
    return found


def _trial(view: RunView) -> list[str]:
    """What the live comparison with a candidate says, if one got a share."""
    with suppress(InputError):
        found = compare_traffic(view.run)
        votes = found["votes"]
        return [
            f"{found['candidate']} beside {found['current']}: the candidate is "
            f"{votes['outcome']} by votes.",
            *found["said"],
        ]
    return []
