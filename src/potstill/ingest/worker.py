"""A process that reads files: `python -m potstill.ingest.worker`, one task a line on its input.

In: JSON lines: first what all files share (config, folders), then a file each. Out: JSON lines:
signs of life, then the folder with the file's records, or why it cannot be used.
What a hostile file does to a process it does to this one; `desk.py` watches it. No torch here:
the tokenizer comes as a file, so that a process costs little. Knows no other file.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TextIO

from potstill.core.processes import end_with_parent
from potstill.errors import PotstillError
from potstill.ingest.chunking import TokenCounter
from potstill.ingest.config import IngestConfig
from potstill.ingest.content import UnusableError
from potstill.ingest.one import Task, read_one
from potstill.ingest.seen import SeenPages

SIGN_SECONDS = 0.2


def main() -> int:
    """Read files until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    # Libraries print what they like; the answers have a stream of their own.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    end_with_parent(signal.SIGKILL)  # a library that hangs may keep `_listen` from its turn
    _no_core_dump()
    tasks: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=_listen, args=(tasks,), daemon=True).start()
    job = json.loads(tasks.get())
    config = IngestConfig.model_validate(job["config"])
    work = Path(job["work"])
    pages = SeenPages(config, work / "ocr", job["threads"])
    signs = _Signs(answers)
    try:
        count = token_counter(Path(job["tokenizer"]))
    except Exception as error:
        traceback.print_exc()
        signs.say(fatal={"error": "PotstillError", "message": f"No file can be read: {error}"})
        return 1
    signs.say(ready=True)
    while True:
        told = json.loads(tasks.get())
        task = Task(told["name"], Path(told["path"]), told["identity"])
        signs.say(**_answer(task, config, count, work, pages, signs))


def _answer(
    task: Task,
    config: IngestConfig,
    count: TokenCounter,
    work: Path,
    pages: SeenPages,
    signs: _Signs,
) -> dict[str, Any]:
    try:
        return {"part": str(read_one(task, config, count, work, pages, signs.sign))}
    except UnusableError as problem:
        return {"reason": problem.reason, "detail": problem.detail}
    except PotstillError as error:  # no file is to blame: a package is missing, the disk is full
        fields = error.as_dict
        return {"fatal": fields}
    except MemoryError:
        return {"reason": "out_of_memory", "detail": "reading it takes more memory than there is"}
    except RecursionError:
        return {"reason": "crashed", "detail": "it is nested too deeply to be read"}
    except Exception as error:
        traceback.print_exc()
        words = f"{type(error).__name__}: {str(error)[:200]}"
        return {
            "reason": "crashed",
            "detail": f"reading it failed in a way nobody foresaw: {words}",
        }


def token_counter(path: Path) -> TokenCounter:
    """The measure of chunks: tokens by the tokenizer in a tokenizer.json, no special ones."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    return count


class _Signs:
    """Tells the parent that work goes on; not oftener than it would look."""

    def __init__(self, answers: TextIO) -> None:
        self.answers = answers
        self._last = 0.0

    def say(self, **words: Any) -> None:
        self.answers.write(json.dumps(words) + "\n")
        self.answers.flush()

    def sign(self, done: int, of: int, unit: str) -> None:
        now = time.monotonic()
        if unit == "page" or now - self._last >= SIGN_SECONDS:
            self._last = now
            self.say(done=done, of=of, unit=unit)


def _listen(tasks: SimpleQueue[str]) -> None:
    """Pass on what the parent says; end at once when it ends."""
    for line in sys.stdin:
        tasks.put(line)
    os._exit(143)


def _no_core_dump() -> None:
    """A file that crashes the process must not fill the disk with its memory, too."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    sys.exit(main())
