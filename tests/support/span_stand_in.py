"""A worker that speaks `span_worker.py`'s protocol without a model, for tests of what is around it.

In: as the real one. Out: the first word of the first passage; a question with "hang" is never
answered, and that it was taken back is noted in the file `cancelled` of the model's folder.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from potstill.serve.span_engine import SpanEngine


class StandIn(SpanEngine):
    """The engine's port over this worker."""

    command = (sys.executable, __file__)


def say(line: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def main() -> None:
    job = json.loads(sys.stdin.readline())
    say({"ready": True})
    for line in sys.stdin:
        asked = json.loads(line)
        if "cancel" in asked:
            (Path(job["folder"]) / "cancelled").write_text(str(asked["cancel"]))
        elif not all(text.split() for text in (asked["question"], *asked["passages"])):
            say({"id": asked["id"], "refused": "The question or the passage is empty."})
        elif "hang" not in asked["question"]:
            word = asked["passages"][0].split()[0]
            found = {"passage": 0, "tokens": 60 * len(asked["passages"]), "answer": word}
            place = {"score": 0.5, "start": 0, "end": len(word), "no_answer": 0.25}
            say({"id": asked["id"], **found, **place})


if __name__ == "__main__":
    main()
