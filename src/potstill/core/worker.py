"""The process that runs one stage: `python -m potstill.core.worker`, its job on standard input.

In: one JSON line (the job), then a pipe that stays open as long as the parent lives.
Out: a finished store entry and exit code 0; or a `failed` event and the error's exit code.
A stage gets a process of its own so that its memory is given back, a crash in native code cannot
take the run along, and two engines never share a process. Knows nothing of language models.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from potstill import __version__
from potstill.core.events import Emitter
from potstill.core.extras import EXTRAS, installed_version, missing
from potstill.core.files import disk_refusal
from potstill.core.machine import describe, peak_memory_bytes, processor_seconds
from potstill.core.stage import Artifact, Context, Stage, StageConfig, StageFunction
from potstill.core.store import Store
from potstill.errors import PotstillError, StoreError

PATIENCE = 30.0  # seconds to wait for a lock whose holder is just dying
DISK_TROUBLE = {errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.EDQUOT, errno.EIO}
# What libraries say of a refusing disk where they raise no OSError, and which errno it stands for.
DISK_WORDS = {
    "no space left": errno.ENOSPC,
    "disk quota": errno.EDQUOT,
    "read-only file system": errno.EROFS,
    "unexpected pos": errno.ENOSPC,  # PyTorch's file writer: fewer bytes arrived than it wrote
}


def main() -> int:
    """Run the job; the exit code is the error's, 0 if the stage is finished."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    line = sys.stdin.readline()
    if not line:
        return 143  # the parent ended before it said what to do
    job = json.loads(line)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    events = Emitter(Path(job["events"]), job["stage"])
    try:
        run_job(job, events)
    except PotstillError as error:
        return _failed(events, error)
    except OSError as error:
        return _failed(events, disk_error(error) or _unexpected(error, job), error)
    except MemoryError as error:
        return _failed(events, _out_of_memory(job), error)
    except ModuleNotFoundError as error:
        found = missing(error, f"The stage {job['stage']}")
        return _failed(events, found or _unexpected(error, job), error)
    except Exception as error:
        return _failed(events, disk_error(error) or _unexpected(error, job), error)
    return 0


def _stage(module: str, name: str) -> Stage:
    """The stage of that name in a package, which may hold several."""
    found = vars(importlib.import_module(module)).values()
    return next(one for one in found if isinstance(one, Stage) and one.name == name)


def _function(stage: Stage, elsewhere: dict[str, Any] | None) -> StageFunction:
    """What does the stage's work, here or elsewhere (`runner.Elsewhere`)."""
    function = stage.load()
    if elsewhere is None:
        return function
    module, name = elsewhere["function"].split(":")
    moved: StageFunction = getattr(importlib.import_module(module), name)(
        stage.name, function, elsewhere["place"]
    )
    return moved


def run_job(job: dict[str, Any], events: Emitter) -> None:
    """Run one stage under its lock and commit what it made."""
    stage = _stage(job["module"], job["stage"])
    config: StageConfig = stage.config.model_validate(job["config"])
    store = Store(Path(job["store"]))
    key: str = job["key"]
    with store.locked(stage.name, key, PATIENCE):
        if store.find(stage.name, key) is not None or store.recover(stage.name, key):
            return  # finished while this one waited, or just before a kill
        inputs = {name: _input(store, name, one) for name, one in job["inputs"].items()}
        resumed = store.has_draft(stage.name, key)
        draft = store.draft(stage.name, key)
        context = Context(
            project=Path(job["project"]),
            cache=store.cache,
            seed=job["seed"],
            threads=job["threads"],
            events=events,
        )
        events.emit("started", key=key, resumed=resumed)
        began = time.monotonic()
        _function(stage, job["elsewhere"])(config, inputs, draft, context)
        seconds = round(time.monotonic() - began, 3)
        manifest = {
            "stage": stage.name,
            "key": key,
            "parts": job["parts"],
            "expected": job["expected"],
            "config": job["config"],
            "inputs": {
                name: {"key": one.key, "digest": one.digest} for name, one in inputs.items()
            },
            "code_version": __version__,
            "environment": {**describe(), "packages": _packages()},
            "counts": dict(stage.counts(draft.data)),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": seconds,
            "processor_seconds": round(processor_seconds(), 3),
            "resumed": resumed,
            "peak_memory_bytes": peak_memory_bytes(),
        }
        artifact = store.commit(draft, manifest)
        events.emit(
            "finished",
            key=key,
            digest=artifact.digest,
            folder=str(artifact.folder),
            seconds=seconds,
            peak_memory_bytes=manifest["peak_memory_bytes"],
            counts=manifest["counts"],
        )


def _input(store: Store, stage: str, key: str) -> Artifact:
    artifact = store.find(stage, key, rehash=True)
    if artifact is None:
        raise StoreError(f"The result {stage} {key[:12]} has vanished from {store.root}.")
    return artifact


def _packages() -> dict[str, str]:
    names = {name for modules in EXTRAS.values() for name in modules.values()}
    found = {name: installed_version(name) for name in sorted(names)}
    return {name: version for name, version in found.items() if version is not None}


def _die_with_parent() -> None:
    """End at once when the parent's end of the pipe closes, as it does when it is killed."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(143)


def _failed(events: Emitter, error: PotstillError, cause: BaseException | None = None) -> int:
    if cause is not None:
        _log(cause)
    fields = error.as_dict
    with contextlib.suppress(OSError):  # a full disk; the parent reads the line below instead
        events.emit("failed", **fields)
    sys.stdout.write(json.dumps(fields) + "\n")
    return error.exit_code


def _log(cause: BaseException) -> None:
    """Standard error is the stage's log file, and the disk may be too full for that, too."""
    with contextlib.suppress(OSError):
        traceback.print_exception(cause)


def disk_error(error: BaseException) -> PotstillError | None:
    """Libraries report a full or read-only disk in their own ways; this knows them."""
    text = str(error).lower()
    number = error.errno if isinstance(error, OSError) else None
    said = next((meant for words, meant in DISK_WORDS.items() if words in text), None)
    if number not in DISK_TROUBLE and said is None:
        return None
    number = number or said
    reason = os.strerror(number) if number else str(error)
    name = getattr(error, "filename", None)
    where = f" {name}" if name else ""
    return disk_refusal(f"The disk refused to write{where}: {reason}.", number)


def _out_of_memory(job: dict[str, Any]) -> PotstillError:
    return PotstillError(
        f"The stage {job['stage']} ran out of memory.",
        job["eases_memory"],
    )


def _unexpected(error: BaseException, job: dict[str, Any]) -> PotstillError:
    return PotstillError(
        f"The stage {job['stage']} failed in a way nobody foresaw: "
        f"{type(error).__name__}: {str(error)[:300]}",
        f"Details are in {job['log']}; finished work is kept.",
    )


if __name__ == "__main__":
    sys.exit(main())
