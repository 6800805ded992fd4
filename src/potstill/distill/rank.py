"""One of the processes that do a stage together: `python -m potstill.distill.rank JOB`.

In: a file with the job (`launch.py`), the environment that a launcher gives each process. Out: the
stage's work, written by the first of them; or `failed.json` beside the job and the error's exit
code. It ends when the process that started it does. Knows nothing of what the stage does.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from potstill.core.events import Emitter
from potstill.core.files import read_json, write_json
from potstill.core.stage import Artifact, Context, Draft
from potstill.core.worker import disk_error
from potstill.distill.ranks import joined
from potstill.errors import PotstillError


def main() -> int:
    """Do the job; the exit code is the error's, 0 if it is done."""
    job = Path(sys.argv[1])
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    try:
        work(read_json(job))
    except Exception as error:
        traceback.print_exception(error)  # standard error is the stage's log
        found = error if isinstance(error, PotstillError) else disk_error(error)
        if found is None:
            return 1
        said = found.as_dict
        write_json(job.parent / "failed.json", said)
        return found.exit_code
    return 0


def work(job: Mapping[str, Any]) -> None:
    """Call the job's function in this process, within the group of all of them."""
    module, name, fields = job["config"]
    config = getattr(importlib.import_module(module), name).model_validate(fields)
    inputs = {name: Artifact.from_dict(one) for name, one in job["inputs"].items()}
    module, name = job["function"].split(":")
    with joined() as ranks:
        tells = ranks.leads and job["events"] is not None
        context = Context(
            project=Path(job["project"]),
            cache=Path(job["cache"]),
            seed=job["seed"],
            threads=job["threads"],
            events=Emitter(Path(job["events"]) if tells else None, job["stage"]),
        )
        function = getattr(importlib.import_module(module), name)
        function(config, inputs, Draft(Path(job["draft"])), context)


def _end_with_parent(parent: int) -> None:
    """A process whose parent is gone has another parent."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(143)


if __name__ == "__main__":
    sys.exit(main())
