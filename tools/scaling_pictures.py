"""The pictures of docs/scaling.md from the cost model, and the trainings that its tables show too.

In: `potstill.costs`. Out: SVG texts by file name. Arithmetic alone; writes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from html import escape

from potstill.core.charts import HEIGHT, LEFT, WIDTH, Line, line_chart
from potstill.costs import (
    Training,
    accelerators,
    bound,
    memory_of,
    parse_cluster,
    published,
    sources,
    step_of,
)
from potstill.costs.cluster import Cluster
from potstill.models.adapter_config import Precision

EIGHT = "8xH100"
STEP, MICRO, SEEN = 1 << 19, 8192, 512
"""Tokens of a step and of a rank at once, and that each one sees, in all tables."""
STYLE = """
text{font:11.5px system-ui,sans-serif;fill:#667}.label,.title{fill:#334}.title{font-weight:600;
font-size:13px}.grid{stroke:#cdd3da}.axis{stroke:#889}.curve{fill:none;stroke-width:2}
.mark{stroke:none}.s0{stroke:#0072b2;fill:#0072b2}.s1{stroke:#d55e00;fill:#d55e00}
.s2{stroke:#009e73;fill:#009e73}.s3{stroke:#cc79a7;fill:#cc79a7}.s4{stroke:#e69f00;fill:#e69f00}
.curve.s0,.curve.s1,.curve.s2,.curve.s3,.curve.s4{fill:none}
.s1.curve{stroke-dasharray:7 3}.s2.curve{stroke-dasharray:2 3}.s3.curve{stroke-dasharray:8 3 2 3}
@media(prefers-color-scheme:dark){text{fill:#9aa}.label,.title{fill:#dde}.grid{stroke:#3a424c}}
"""


def lesson(student: str, teacher: str) -> Training:
    """A training of the tables: every token taught, all weights trained."""
    known = published()
    return Training(
        known[student],
        known[teacher],
        "live",
        teacher_precision=precision_of(teacher),
        micro_tokens=MICRO,
        step_tokens=STEP,
        seen=SEEN,
        checkpointed=True,
    )


def precision_of(teacher: str) -> Precision:
    """Of a teacher in the tables: in 4 bits where half an H100 does not hold it in bf16."""
    small = 2 * published()[teacher].weights < accelerators()["H100"].memory / 2
    return "full" if small else "4bit"


def picture(title: str, lines: Sequence[Line], x_label: str, y_label: str) -> str:
    """A chart as a file of its own: with its style, its title and its key."""
    drawn = str(line_chart(title, lines, x_label, y_label))
    inner = re.search(r'<svg class="plot"[^>]*>(.*?)</svg>', drawn, re.DOTALL)
    assert inner is not None
    top, keys = 34, []
    for place, line in enumerate(lines):
        x, y = LEFT + 190 * (place % 2), HEIGHT + top + 14 + 16 * (place // 2)
        keys.append(
            f'<path class="curve {line.style}" d="M{x} {y - 4}h22"/>'
            f'<text x="{x + 28}" y="{y}">{escape(line.label)}</text>'
        )
    height = HEIGHT + top + 22 + 16 * ((len(lines) - 1) // 2)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(title, quote=True)}"><style>{STYLE}</style>'
        f'<text class="title" x="8" y="16">{escape(title)}</text>'
        f'<text x="8" y="30">{escape(y_label)}</text>'
        f'<g transform="translate(0 {top})">{inner[1]}</g>{"".join(keys)}</svg>\n'
    )


def crossing_picture() -> str:
    """Time against passes, a line a source."""
    found = sources(lesson("SmolLM2-135M", "Llama-2-7B"), 1e9, parse_cluster(EIGHT))
    lines = [
        Line(kind, f"s{place}", [(n, one.seconds(n) / 3600) for n in range(7)])
        for place, (kind, one) in enumerate(found.items())
    ]
    title = "A billion tokens, 7B teaching 135M on 8 H100"
    return picture(title, lines, "passes over the tokens", "hours")


def memory_picture() -> str:
    """Memory of a rank against their number."""
    one = lesson("Llama-2-7B", "Llama-2-13B")
    counts = (1, 2, 4, 8, 16, 24, 32)
    h100 = accelerators()["H100"]
    clusters = [Cluster(h100, max(1, n // 8), min(n, 8)) for n in counts]
    lines = []
    for place, (held, sharded) in enumerate(
        (h, s) for h in ("live", "output") for s in (False, True)
    ):
        case = replace(one, teacher_held=held)
        points = [
            (at.ranks, sum(memory_of(case, at, sharded=sharded).values()) / 1e9) for at in clusters
        ]
        label = f"{'FSDP' if sharded else 'DDP'}, {'live' if held == 'live' else 'states in file'}"
        lines.append(Line(label, f"s{place}", points))
    title = "Memory of a rank: 13B teaching 7B, 8,192 tokens at once"
    return picture(title, lines, "ranks", "GB; an H100 has 80")


def speed_picture() -> str:
    """Speed against hosts, a line a network."""
    lines = []
    for place, name in enumerate(("H100", "A100-80GB", "L40S")):
        points = []
        for hosts in (1, 2, 4, 8, 12, 16):
            cluster = Cluster(accelerators()[name], hosts, 8)
            one = replace(lesson("SmolLM2-1.7B", "Llama-3-70B"), teacher_held="nothing")
            one = replace(one, teacher=None)
            step = bound([step_of(one, cluster)], cluster)
            points.append((8 * hosts, STEP / step.seconds / 1e6))
        lines.append(Line(name, f"s{place}", points))
    title = f"Training 1.7B from a file of words, steps of {STEP >> 10}k tokens"
    return picture(title, lines, "devices, 8 a host", "million tokens a second")


PICTURES = {
    "scaling-crossings.svg": crossing_picture,
    "scaling-memory.svg": memory_picture,
    "scaling-speed.svg": speed_picture,
}
