"""A study's values and states as people read them, in the terminal as on the page. Light.

In: a searched value, a trial's state. Out: short texts. Knows nothing of studies.
"""

from __future__ import annotations

import json
from typing import Any

STATES = {
    "complete": "complete",
    "pruned": "given up",
    "failed": "failed",
    "running": "under way",
}
"""What came of a trial, in the order in which they are counted."""


def shown(value: Any) -> str:
    """A searched value as short as it stays clear: true, 0.001234, forward_kl."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
