"""What came of the windows so far, counted: for the command line, the page and the API.

In: an open traffic store. Out: plain data. Knows no HTTP and draws nothing.
"""

from __future__ import annotations

from typing import Any

from potstill.serve.traffic import TrafficStore
from potstill.serve.watch import ASKED

MOST_WAITING = 1000  # as large as a window can be


def summary(name: str, store: TrafficStore, off: str = "") -> dict[str, Any]:
    """`run`, `requests`, `off`, `variants`, `windows`, as `drifting.read_drift` describes them."""
    windows = store.windows()
    names = sorted({one["variant"] for one in windows} | set(store.variants(ASKED)))
    return {
        "run": name,
        "requests": store.count(),
        "off": off,
        "variants": {one: _variant(store, windows, one) for one in names},
        "windows": windows,
    }


def _variant(store: TrafficStore, windows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    own = [one for one in windows if one["variant"] == name]
    alarms = [one for one in own if one["alarm"]]
    state = "none"
    if own:
        newest = own[-1]
        state = "calm" if not newest["alarm"] else "dismissed" if newest["dismissed"] else "alarm"
    return {
        "windows": len(own),
        "alarms": len(alarms),
        "dismissed": sum(one["dismissed"] is not None for one in alarms),
        "by_chance": round(sum(one["level"] for one in own), 2),
        "waiting": len(store.waiting(name, ASKED, MOST_WAITING)),
        "state": state,
    }
