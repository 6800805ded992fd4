"""Lets a candidate serve, or the version before it again.

In: a run, a candidate's name. Out: the run's versions.json, which a running service looks at.
Trains nothing and measures nothing.
"""

from __future__ import annotations

from potstill.pipeline import Run, open_run
from potstill.run_folder import versions_of
from potstill.serve.versions import Serving


def promote(
    this: Run,
    candidate: str,
    *,
    file: str | None = None,
    force: bool = False,
    accept_unproven: bool = False,
    by: str | None = None,
) -> Serving:
    """Let a candidate serve a run under the run's name.

    file: which exported GGUF, by name; default: the smallest. force: though it has not passed the
    gate, which is recorded. accept_unproven: though its target is too small to tell. by: who
    decides; default: the name of the account. Errors: UsageError, StoreError.
    """
    run = open_run(candidate, this.project)
    export = run.artifact("export")
    chosen = "" if run.task == "spans" else run.exported(file).name
    return versions_of(this).promote(
        run.folder.resolve().name,
        chosen,
        export.key,
        force=force,
        accept_unproven=accept_unproven,
        by=by,
    )


def rollback(this: Run, *, by: str | None = None) -> Serving:
    """Let the version before the current one serve again. Errors: UsageError, StoreError."""
    return versions_of(this).rollback(by)
