"""Why nothing is compared is said of the version that serves, not of the run that it came from."""

from __future__ import annotations

from pathlib import Path

from studio_runs import make_run, row

from potstill.drifting import read_drift
from potstill.improve import versions_of
from potstill.pipeline import Run


def test_too_few_rows_are_those_of_the_version_that_serves(tmp_path: Path) -> None:
    run = Run(make_run(tmp_path))
    assert "too few to compare with" in read_drift(run)["off"]
    make_run(tmp_path, "made-2", files={"curate": {"train.jsonl": [row(n) for n in range(60)]}})
    versions_of(run).promote("made-2", "", "k", force=True)
    assert read_drift(run)["off"] == ""
    versions_of(run).rollback()
    assert "too few to compare with" in read_drift(run)["off"]
