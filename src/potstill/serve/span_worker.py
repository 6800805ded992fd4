"""A student that marks answers, in a process of its own: `python -m potstill.serve.span_worker`.

In: one JSON line on standard input (the model and its threads), then one line a question, or one
that takes a question back, until the gateway's end of the pipe closes. Out: one JSON line when it
is warm, then one for each question, as they are done. ONNX Runtime reads; a crash of it ends this
process and nothing else. Knows nothing of the gateway.

    {"id": 1, "question": "…", "passages": ["…"], "threshold": null}      {"cancel": 1}
    {"id": 1, "passage": 0, "answer": "…", "start": 4, "end": 9, …}       {"id": 2, "refused": "…"}
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from potstill.serve.child import begun

if TYPE_CHECKING:
    from potstill.models.spans.reader import SpanReader

WARM_QUESTION = "When does the keeper open the valve?"
WARM_PASSAGE = "The keeper opens the valve at noon and writes the time into the log. " * 40


class TakenBackError(Exception):
    """The question was taken back."""


class Desk:
    """Answers several questions at once, each in a thread of its own."""

    def __init__(
        self, reader: SpanReader, at_once: int, say: Callable[[dict[str, Any]], None]
    ) -> None:
        self._reader, self.say = reader, say
        self._open: set[int] = set()
        self._pool = ThreadPoolExecutor(at_once)

    def warm(self, at_once: int) -> None:
        """Read a whole window in every thread: memory is laid out, each kernel was used."""
        read = self._reader.answer_from
        list(self._pool.map(lambda _: read(WARM_QUESTION, [WARM_PASSAGE]), range(at_once)))

    def take(self, job: dict[str, Any]) -> None:
        """A question, or the word that nobody waits for it any more."""
        if "cancel" in job:
            self._open.discard(job["cancel"])
        else:
            self._open.add(job["id"])
            self._pool.submit(self._work, job)

    def _work(self, job: dict[str, Any]) -> None:
        from potstill.errors import InputError

        number = job["id"]

        def still_wanted() -> None:
            if number not in self._open:
                raise TakenBackError

        try:
            self.say({"id": number, **self._found(job, still_wanted)})
        except TakenBackError:
            pass
        except InputError as error:
            self.say({"id": number, "refused": str(error)})
        except Exception as error:
            self.say({"id": number, "failed": f"{type(error).__name__}: {error}"[:300]})
        finally:
            self._open.discard(number)

    def _found(self, job: dict[str, Any], before: Any) -> dict[str, Any]:
        before()
        threshold = {} if job["threshold"] is None else {"threshold": job["threshold"]}
        found = self._reader.answer_from(
            job["question"], job["passages"], before=before, **threshold
        )
        said = found.answer
        if not (math.isfinite(said.score) and math.isfinite(said.no_answer)):
            raise ArithmeticError("the model computes what are not finite numbers")
        return {
            "passage": found.passage,
            "tokens": found.tokens,
            "answer": said.answer,
            "score": said.score,
            "start": said.start,
            "end": said.end,
            "no_answer": said.no_answer,
        }


def main() -> int:
    """Serve until the gateway's end of the pipe closes."""
    job, gateway = begun()
    try:
        from potstill.models.spans.reader import SpanReader

        reader = SpanReader(job["folder"], onnx=job["file"], threads=job["threads"])
        desk = Desk(reader, job["at_once"], gateway.say)
        desk.warm(job["at_once"])
    except Exception as error:
        gateway.failed(error)
        return 1
    desk.say({"ready": True})
    for line in sys.stdin:
        desk.take(json.loads(line))
    os._exit(0)  # without teardown: a thread may still read


if __name__ == "__main__":
    sys.exit(main())
