"""A small document of colours with rows whose answers stand in it, for stages of task spans."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from potstill.core.events import Emitter
from potstill.core.files import write_records
from potstill.core.stage import Artifact, Context, Draft
from potstill.records import Chunk, Example, Provenance, Turn

PLACES = ("north", "south")
COLOURS = ("red", "blue", "green")


class SpanRun:
    """Artifacts of the earlier stages in one folder, and drafts for the later ones."""

    def __init__(self, root: Path, rows: int = 18, refusals: bool = True) -> None:
        self.root = root
        chunks, examples = [], []
        for number in range(rows):
            place, colour = PLACES[number % 2], COLOURS[number % 3]
            text = f"the lamp in the {place} tower is {colour} and the keeper notes the time"
            place_of = {"document": "d", "source": "s", "start": 0, "end": len(text), "tokens": 14}
            chunks.append(Chunk.model_validate({"id": f"c{number}", "text": text, **place_of}))
            examples.append(_row(number, f"where is the {colour} lamp", place, text))
            if refusals and number % 3 == 0:
                examples.append(
                    _row(100 + number, "when is the boiler drained", None, text, number)
                )
        bad = _row(900, "what is it", "bar", chunks[0].text, 0)  # not in its passage
        self.inputs = {
            name: Artifact(name, "key", root / name, "digest")
            for name in ("ingest", "curate", "correct", "distill", "evaluate")
        }
        for one in self.inputs.values():
            (one.folder / "data").mkdir(parents=True)
        write_records(self.inputs["ingest"].path("chunks.jsonl"), chunks)
        parts = {"test": examples[:8], "validation": examples[8:12], "train": [*examples[12:], bad]}
        for name, some in parts.items():
            write_records(self.inputs["curate"].path(f"{name}.jsonl"), some)

    def run(self, stage: str, function: Callable[..., None], config: Any) -> Path:
        """Run a stage into its own artifact's folder, which later stages read."""
        draft = Draft(self.root / stage)
        draft.data.mkdir(parents=True, exist_ok=True)
        draft.work.mkdir(exist_ok=True)
        events = Emitter(self.root / "events.jsonl", stage)
        function(config, self.inputs, draft, Context(self.root, self.root, 7, 1, events))
        return draft.data

    def events(self, kind: str) -> list[dict[str, Any]]:
        """All events of that kind."""
        lines = (self.root / "events.jsonl").read_text().splitlines()
        return [one for one in map(json.loads, lines) if one["kind"] == kind]


def _row(
    number: int, question: str, answer: str | None, passage: str, chunk: int | None = None
) -> Example:
    said = answer or "The passage does not say."
    return Example(
        id=f"row-{number:03}",
        kind="qa" if answer else "refusal",
        turns=(
            Turn(role="user", content=f"{passage}\n\n{question}"),
            Turn(role="assistant", content=said),
        ),
        question=question,
        answers=(said,),
        provenance=Provenance(document="d", chunk=f"c{number if chunk is None else chunk}"),
    )
