"""Search over settings: the studies of the project, the page that each wrote; a new one.

In: `studies/` of the project, a study as text. Out: a list, each study's own page, and a process of
its own that searches, as `potstill tune` does. Tries nothing itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse, RedirectResponse, Response

from potstill.core import fields
from potstill.core.files import disk_errors, read_json, write_atomic
from potstill.errors import PotstillError, RecipeError, StoreError, UsageError
from potstill.recipe import Recipe
from potstill.studio.guard import fields_of
from potstill.studio.launch import last_words
from potstill.studio.pages import page
from potstill.studio.results import REPORT_POLICY
from potstill.studio.runs import NAME, RunView, all_runs, find_run
from potstill.studio.session import Studio
from potstill.tune.study import STATUS, Study, builtin_studies

FILE, LOG, RECIPE = "study.yaml", "tune.log", "recipe.yaml"


def routes(studio: Studio) -> APIRouter:
    """The routes of the pages."""
    router = APIRouter()

    def shown(request: Request, text: str, begun: str, wrong: PotstillError | None) -> Response:
        return page(
            request,
            studio,
            "search.html.j2",
            title="Search over settings",
            here="search",
            status=200 if wrong is None else 400,
            studies=studies_of(studio),
            builtin=list(builtin_studies()),
            runs=[one.name for one in all_runs(studio) if (one.folder / RECIPE).is_file()],
            begun=begun,
            text=text,
            wrong=wrong,
        )

    @router.get("/search")
    def search(request: Request) -> Response:
        known = builtin_studies()
        begun = request.query_params.get("from", "")
        if run := request.query_params.get("run", ""):
            return shown(request, study_of(find_run(studio, run)), begun, None)
        if begun and begun not in known:
            raise UsageError(f"There is no study {begun[:64]}.", f"There are {', '.join(known)}.")
        return shown(request, known[begun].read_text("utf-8") if begun else "", begun, None)

    @router.post("/search")
    async def start(request: Request) -> Response:
        """Check the text, keep it in the study's folder, and search."""
        text = fields_of(await request.body()).get("study", "").replace("\r\n", "\n")
        try:
            folder = await run_in_threadpool(begin, studio, text)
        except PotstillError as error:  # said above the text that it is about
            return shown(request, text, "", error)
        _launch(studio, folder)
        return RedirectResponse("/search", 303)

    @router.get("/search/{name}")
    def study(name: str) -> Response:
        path = studio.project / "studies" / name / "report.html"
        if not NAME.fullmatch(name) or not path.is_file():
            raise UsageError(
                f"The study {name[:64]} has no page yet.", "It is written as its trials end."
            )
        with disk_errors(path, "read"):
            text = path.read_text("utf-8")
        return HTMLResponse(text, headers={"Content-Security-Policy": REPORT_POLICY})

    @router.post("/search/{name}/{action}")
    def go_on(name: str, action: str) -> Response:
        folder = studio.project / "studies" / name
        if not NAME.fullmatch(name) or action not in ("stop", "resume") or not folder.is_dir():
            raise UsageError(f"There is no study {name[:64]}.", "Reload the page.")
        if action == "stop":
            studio.launcher.stop(folder)
        elif not (folder / FILE).is_file():
            raise UsageError(
                f"The study {name} was begun in a terminal.", "It goes on there: potstill tune"
            )
        else:
            _launch(studio, folder)
        return RedirectResponse("/search", 303)

    return router


def study_of(view: RunView) -> str:
    """The text of a study around a run, to begin from. Errors: RecipeError for a damaged recipe."""
    recipe = Recipe.load(view.folder / RECIPE)
    config = recipe.distill
    rate = config.learning_rate
    search = [f"  distill.learning_rate: {{low: {rate / 4:.2g}, high: {rate * 4:.2g}, log: true}}"]
    if recipe.task == "spans":
        figure = "validation_mark_ce"
    else:
        figure = "validation_span_kl" if config.alignment.used else "validation_kl"
        search.append("  distill.ce_weight: {low: 0.0, high: 1.0}")
    lines = [
        f"# Around the run {view.name}; stages before the first searched field are computed once.",
        f"name: {view.name[:41]}-search",
        f"recipe: runs/{view.name}/{RECIPE}",
        "search:",
        *search,
        f"objective: {{{figure}: minimize}}",
        "trials: 8",
        "random_trials: 4",
    ]
    return "\n".join(lines) + "\n"


def begin(studio: Studio, text: str) -> Path:
    """Keep a study's text in its folder. Errors: RecipeError for the text, or for the name of a
    study that has another; StoreError."""
    if len(text) > fields.LARGEST_FILE:
        raise RecipeError("The text is larger than 1 MiB; that is no study.")
    data, _ = fields.parse(text, "study")
    name = data.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise RecipeError(
            "A study needs a name of small letters, digits, _ and -.", "Begin it with: name: first"
        )
    folder = studio.project / "studies" / name
    Study.from_dict(data, studio.project)  # where the process looks for its recipe, too
    if folder.exists() and not (
        (folder / FILE).is_file() and (folder / FILE).read_text("utf-8", "replace") == text
    ):
        raise RecipeError(
            f"There is a study {name} already.", "Choose another name, or let that one go on."
        )
    with disk_errors(folder, "create"):
        folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / FILE, text)
    return folder


def _trials(folder: Path) -> dict[str, int] | None:
    """How far a study is, as it says itself: `trials` wanted, `ended`, and of each state."""
    try:
        said = {str(name): int(count) for name, count in read_json(folder / STATUS).items()}
        ended = sum(said.get(state, 0) for state in ("complete", "pruned", "failed"))
        return {"trials": said["trials"], "ended": ended, **said}
    except (StoreError, OSError, LookupError, AttributeError, TypeError, ValueError):
        return None


def _launch(studio: Studio, folder: Path) -> None:
    words = ["tune", str(folder / FILE)]
    studio.launcher.launch(folder, words, studio.project, folder / LOG)


def studies_of(studio: Studio) -> list[dict[str, Any]]:
    """Every study, the last one first: name, its state in words, its trials, its recipes, whether
    it has a page; why it stopped, if it says so, and whether it can go on from here."""
    found = []
    for folder in (studio.project / "studies").glob("*"):
        files = [one for one in (folder / "study.db", folder / FILE) if one.is_file()]
        if NAME.fullmatch(folder.name) and files:
            running = studio.launcher.running(folder)
            failure = None if running else last_words(folder, LOG)
            trials = _trials(folder)
            found.append(
                {
                    "name": folder.name,
                    "running": running,
                    "state": "stopping"
                    if studio.launcher.stopping(folder)
                    else "running"
                    if running
                    else "failed"
                    if failure
                    else "finished"
                    if trials and trials["ended"] >= trials["trials"]
                    else "stopped",
                    "trials": trials,
                    "page": (folder / "report.html").is_file(),
                    "recipes": sorted(
                        one.name for one in folder.glob("*.yaml") if one.name != FILE
                    ),
                    "when": max(one.stat().st_mtime for one in files),
                    "failure": failure,
                    "here": (folder / FILE).is_file(),
                }
            )
    return sorted(found, key=lambda one: -one["when"])
