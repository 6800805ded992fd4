"""How every measurement says what it found: one JSON object a line on standard output.

In: a figure, its goal, how it was measured. Out: a line that also says on what machine.
"""

from __future__ import annotations

import json
from typing import Any

from potstill.core.machine import describe


def figure(name: str, value: Any, unit: str, goal: Any, holds: bool, how: str) -> None:
    """Print one result line. goal: None for a figure that has none; holds: whether it is met."""
    line = {"figure": name, "value": value, "unit": unit, "goal": goal, "holds": holds}
    print(json.dumps({**line, "how": how, "machine": describe()}), flush=True)
