"""Results: what a run measured, its answers row by row, its files; and runs set side by side.

In: finished runs. Out: pages and downloads. Measures nothing, and hands out no file but a run's
own results.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import FileResponse, HTMLResponse, Response

from potstill.core.files import disk_errors, folder_files
from potstill.errors import InputError, PotstillError, StoreError, UsageError
from potstill.evaluate import comparison, words
from potstill.evaluate.page import trade_offs
from potstill.studio.home import headline
from potstill.studio.pages import page
from potstill.studio.runs import RunView, all_runs, find_run
from potstill.studio.session import Studio

REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; sandbox"
"""Of pages that carry their own style: no script, no form, no other page's rights."""
NAMED = {
    "report.html": "the whole report, one page that opens anywhere",
    "report.json": "every figure, for programs",
    "report.txt": "both tables and sampled answers as text",
    "data-card.html": "what the data is and what was set aside",
    "recipe.yaml": "everything about the run; it can be run again",
}
KINDS = {
    ".gguf": "for llama.cpp, Ollama, LM Studio",
    ".onnx": "for ONNX Runtime",
    ".safetensors": "weights, for Transformers",
}
EXPORTED = {
    "README.md": "model card",
    "SERVING.md": "how the files are served",
    "Modelfile": "for Ollama, beside the GGUF file",
    "export.json": "what each file is, and what was measured of it",
}
BESIDE = "goes with the weights"
"""What else lies in a folder of the export: a tokenizer, configurations."""
SHOWN_ROWS = 20


def routes(studio: Studio) -> APIRouter:
    """The routes of the pages."""
    router = APIRouter()

    @router.get("/runs/{name}/results")
    def results(name: str, request: Request) -> Response:
        view = find_run(studio, name)
        report = view.report
        number = request.query_params.get("page", "1")
        rows, total = ([], 0) if report is None else answers_of(view, number)
        return page(
            request,
            studio,
            "results.html.j2",
            title=f"{name}: results",
            here="runs",
            tab="results",
            view=view,
            report=report,
            tables=[] if report is None else _tables(report),
            charts=[] if report is None else trade_offs(report),
            files=files_of(view),
            rows=rows,
            at=max(1, int(number)) if number.isdecimal() and len(number) < 9 else 1,
            last=max(1, -(-total // SHOWN_ROWS)),
            total=total,
        )

    @router.get("/runs/{name}/report")
    def report(name: str) -> Response:
        return _own_page(find_run(studio, name).folder / "report.html")

    @router.get("/runs/{name}/card")
    def card(name: str) -> Response:
        return _own_page(find_run(studio, name).folder / "data-card.html")

    @router.get("/runs/{name}/files/{path:path}")
    def download(name: str, path: str) -> Response:
        """A result's file; only those that the page lists."""
        view = find_run(studio, name)
        known = {one["path"] for one in files_of(view)}
        file = view.folder / path
        if path not in known or not file.is_file():
            raise UsageError(
                f"There is no file {path[:80]} among the results of {name}.",
                "The run may have gone on since the page was opened; reload it.",
            )
        kept = f"{name}-{Path(path).name}"
        return FileResponse(file, filename=kept, media_type="application/octet-stream")

    @router.get("/compare")
    def board(request: Request) -> Response:
        done = [one for one in all_runs(studio) if one.report is not None]
        return page(
            request,
            studio,
            "compare.html.j2",
            title="Compare",
            here="compare",
            rows=[(one, headline(one.report), str(one.recipe.get("teacher", ""))) for one in done],
        )

    @router.get("/compare/page")
    def side_by_side(request: Request) -> Response:
        """Several runs as one page; in the address as run=NAME."""
        from potstill.evaluate.compare import compare
        from potstill.evaluate.compare_page import render

        names = list(dict.fromkeys(request.query_params.getlist("run")))
        if len(names) < 2:
            raise InputError(
                "A comparison needs at least two runs.", "Go back and choose one more."
            )
        found = compare([_compared(find_run(studio, name)) for name in names], by=_by(request))
        return HTMLResponse(render(found), headers={"Content-Security-Policy": REPORT_POLICY})

    return router


def _by(request: Request) -> str:
    return request.query_params.get("by") or "f1"


def _compared(view: RunView) -> Any:
    from potstill.evaluate.side_by_side import compared

    return compared(
        view.name, view.run.report, view.run.artifact("evaluate").path("predictions.jsonl")
    )


def _own_page(path: Path) -> Response:
    """A page that a run wrote, without the studio's rights."""
    if not path.is_file():
        raise StoreError(f"This run has no {path.name} yet.", "It is written as the run goes on.")
    with disk_errors(path, "read"):
        text = path.read_text("utf-8")
    return HTMLResponse(text, headers={"Content-Security-Policy": REPORT_POLICY})


def _tables(report: dict[str, Any]) -> list[tuple[str, list[list[str]]]]:
    return [
        ("Quality", comparison.quality(report)),
        ("Size and speed", comparison.sizes(report)),
    ]


def files_of(view: RunView) -> list[dict[str, Any]]:
    """What can be downloaded: exported files first, then reports; path from the run's folder."""
    found = []
    export = view.folder / "export"
    if export.is_dir():
        for relative in folder_files(export):
            path = Path("export") / relative
            about = EXPORTED.get(relative.name) or KINDS.get(relative.suffix)
            about = about or (BESIDE if len(relative.parts) > 1 else "")
            found.append(_file(view.folder, path, about))
        found.sort(key=lambda one: (one["about"] in ("", BESIDE), one["path"]))
    named = [(Path(name), about) for name, about in NAMED.items()]
    found += [_file(view.folder, path, about) for path, about in named]
    return [one for one in found if one["bytes"] is not None]


def _file(folder: Path, path: Path, about: str) -> dict[str, Any]:
    size = None  # of what is not there, or leads out of the run
    if (folder / path).is_file() and (folder / path).resolve().is_relative_to(folder.resolve()):
        size = (folder / path).stat().st_size
    return {"path": path.as_posix(), "bytes": size, "about": about}


def answers_of(view: RunView, number: str) -> tuple[list[dict[str, Any]], int]:
    """One page of held-out questions with each model's answer: those first on which the student
    falls furthest behind its teacher. And how many questions there are."""
    try:
        path = view.run.artifact("evaluate").path("predictions.jsonl")
        with path.open(encoding="utf-8") as file:
            lines = [json.loads(line) for line in file if line.strip()]
    except (PotstillError, OSError, LookupError, ValueError):
        return [], 0
    rows: dict[str, dict[str, Any]] = {}
    for line in lines:
        row = rows.setdefault(
            str(line["id"]),
            {"question": line.get("question", ""), "golds": line.get("golds", []), "answers": {}},
        )
        row["answers"][str(line["model"])] = (str(line.get("answer") or ""), line.get("f1"))
    order = sorted(rows.values(), key=_behind, reverse=True)
    at = max(1, int(number)) if number.isdecimal() and len(number) < 9 else 1
    chosen = order[(at - 1) * SHOWN_ROWS : at * SHOWN_ROWS]
    for row in chosen:
        row["answers"] = [
            (words.model_name(model), answer, words.figure("f1", f1))
            for model, (answer, f1) in row["answers"].items()
        ]
    return chosen, len(rows)


def _behind(row: dict[str, Any]) -> float:
    scores = [row["answers"].get(model, ("", None))[1] for model in ("teacher", "distilled")]
    return float(scores[0] or 0.0) - float(scores[1] or 0.0)
