"""What a terminal, or a file, is told of a run."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from rich.console import Console

from potstill.core.runner import PlannedStep
from potstill.display import Display, duration, number, plan_table, size


def told(*events: dict[str, Any]) -> list[str]:
    file = io.StringIO()
    display = Display(Console(file=file, width=40))
    for event in events:
        display(event)
    return file.getvalue().splitlines()


def test_a_finished_stage_says_what_it_made_and_why_rows_were_rejected() -> None:
    lines = told(
        {"stage": "ingest", "kind": "started"},
        *[
            {"stage": "ingest", "kind": "rejected", "reason": one}
            for one in ("empty", "a", "empty")
        ],
        {"stage": "ingest", "kind": "rejected", "reason": "a", "count": 1200},
        {
            "stage": "ingest",
            "kind": "finished",
            "seconds": 75.2,
            "peak_memory_bytes": 4.2e8,
            "counts": {"chunks": 37, "chunk_tokens": 190.5},
            "folder": str(Path.cwd() / "store" / "ingest" / "key"),
        },
    )
    assert lines[-1] == (
        "ingest    done in 1 min 15 s, peak 420 MB; 37 chunks; 1,203 rejected (a 1201, empty 2), "
        "listed in store/ingest/key/data/rejected.jsonl"
    )


def test_progress_counts_whole_things_and_names_the_page() -> None:
    event = {"stage": "ingest", "kind": "progress", "done": 0.4, "total": 1, "unit": "files"}
    (line,) = told({**event, "step": "a.pdf", "page": 4, "pages": 10})
    assert line == "ingest    a.pdf 0/1 files, page 4/10"


def test_progress_says_how_fast_how_dear_and_how_long() -> None:
    event = {"stage": "generate", "kind": "progress", "done": 9, "total": 9, "unit": "requests"}
    pace = {"rows_per_second": 2.5, "tokens_per_second": 151.0, "cost": 0.0123, "seconds_left": 75}
    (line,) = told({**event, **pace})
    assert line == (
        "generate  generate 9/9 requests  2.5 usable rows/s  151 tokens/s  cost 0.0123  "
        "1 min 15 s left"
    )


def test_a_correction_shows_its_loss_and_not_how_far_it_went() -> None:
    said = "\n".join(
        told(
            {"kind": "metric", "stage": "correct", "name": "validation_kl", "value": 0.97},
            {"kind": "metric", "stage": "correct", "name": "validation_loss", "value": 0.41},
            {"kind": "progress", "stage": "correct", "done": 1, "total": 1, "unit": "steps"},
            {"kind": "metric", "stage": "distill", "name": "validation_kl", "value": 0.83},
            {"kind": "progress", "stage": "distill", "done": 1, "total": 1, "unit": "steps"},
        )
    )
    assert "validation kl 0.97" not in said
    assert "validation loss 0.41" in said
    assert "validation kl 0.83" in said


def test_a_plan_leaves_out_costs_that_nobody_has_and_takes_the_largest_memory() -> None:
    steps = [
        PlannedStep("ingest", "run", "never run here", {"seconds": 5, "memory_bytes": 6e8}, "k"),
        PlannedStep("generate", "wait", "after ingest", {"seconds": 70, "memory_bytes": 4e8}, None),
    ]
    file = io.StringIO()
    Console(file=file, width=80).print(plan_table(steps))
    header, *_, total = file.getvalue().splitlines()
    assert header.split() == ["stage", "action", "why", "time", "memory"]
    assert total.split() == ["in", "all", "1", "min", "15", "s", "600", "MB"]


def test_figures_are_short_and_honest() -> None:
    assert [number(value) for value in (1234, 0.01234, 250.4)] == ["1,234", "0.0123", "250"]
    assert [size(value) for value in (12, 98_379_826, 4.1e9)] == ["12 B", "98 MB", "4.1 GB"]
    assert [duration(value) for value in (3.21, 42, 75, 7260)] == [
        "3.2 s",
        "42 s",
        "1 min 15 s",
        "2 h 01 min",
    ]
