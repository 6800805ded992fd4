"""New run: a recipe as a form and as text, kept in step; what a run of it would take; Start.

In: a built-in recipe, the project's own, or that of an earlier run. Out: `runs/NAME/recipe.yaml`
and a process that runs it. The text is the one truth: the form is made from it, and changes one
field of it at a time. Knows neither files nor stages.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import HTMLResponse, RedirectResponse, Response

from potstill import display, pipeline
from potstill.core import fields
from potstill.core.files import disk_errors, write_atomic
from potstill.errors import RecipeError, UsageError
from potstill.inference.endpoint import is_endpoint
from potstill.inference.probe import probe
from potstill.outlook import Plan, this_processor
from potstill.project import DOCUMENTS
from potstill.recipe import Recipe, builtin_recipes
from potstill.studio import recipe_form, recipe_text
from potstill.studio.guard import fields_of
from potstill.studio.pages import fragment, page
from potstill.studio.runs import all_runs, find_run
from potstill.studio.session import Studio
from potstill.studio.uploads import LARGEST_UPLOAD, accepted, files_of, plugins_for

SOURCES, READERS = ("ingest", "sources"), ("ingest", "readers")
SAMPLE = "sample:"
OWN = "recipe.yaml"
BESIDE = frozenset({"seconds", "memory_bytes", "disk_bytes"})
"""Costs that the plan's table shows for each step; the others are summed up below it."""
NO_FILES = "Put files into the box above."
EXISTS = "There is a run {} already. Choose another name, or go on with that run on its own page."


class Text(BaseModel):
    """The recipe's text as it stands in the page."""

    yaml: str


class Change(Text):
    """One control was changed."""

    field: str
    text: str


class Sources(Text):
    """Files were added or taken out; as the recipe names them."""

    add: list[str] = []
    drop: list[str] = []


def routes(studio: Studio) -> APIRouter:
    """The routes of the page."""
    router = APIRouter()

    @router.get("/new")
    def new(request: Request) -> Response:
        query = request.query_params
        own = query.get("own") == "1"
        used = _of_documents(studio, [DOCUMENTS] if own else query.getlist("use"))
        begun, text = _begin(studio, query.get("from", ""), query.get("run", ""), own, used)
        return page(
            request,
            studio,
            "new.html.j2",
            title="New run",
            here="new",
            begun=begun,
            bases=_bases(studio),
            files=files_of(studio.project),
            accepted=",".join(accepted()),
            largest=LARGEST_UPLOAD,
            largest_words=display.size(LARGEST_UPLOAD),
            yaml=text,
            **_read(studio, text),
        )

    @router.post("/new/read")
    def read(said: Text) -> dict[str, Any]:
        found = _read(studio, said.yaml)
        found["form"] = fragment("form.html.j2", **found)
        return {name: found[name] for name in ("form", "mistakes", "general")}

    @router.post("/new/set")
    def change(said: Change) -> dict[str, Any]:
        data, _ = _parsed(said.yaml)
        place, value = recipe_form.meaning(data, said.field, said.text)
        if value is None:
            text = recipe_text.drop(said.yaml, place)
        else:
            text = recipe_text.put(said.yaml, place, value)
        found = _read(studio, text)
        return {"yaml": text, "mistakes": found["mistakes"], "general": found["general"]}

    @router.post("/new/sources")
    def sources(said: Sources) -> dict[str, Any]:
        data, _ = _parsed(said.yaml)
        text = recipe_text.put(said.yaml, SOURCES, _sources(data, said))
        text = _with_readers(text, said.add)
        if said.add and _is_of_sample(data):
            text = _as_own(studio, text, Path(said.add[0]).stem)
        found = _read(studio, text)
        form = fragment("form.html.j2", **found)
        return {
            "yaml": text,
            "form": form,
            "mistakes": found["mistakes"],
            "general": found["general"],
        }

    @router.post("/new/plan")
    def plan(said: Text) -> Response:
        """What a run would do now, as a part of the page."""
        data, _ = _parsed(said.yaml)
        recipe = Recipe.from_dict(data)
        return HTMLResponse(plan_of(pipeline.plan(recipe, studio.project)))

    @router.post("/new/try")
    def try_teacher(said: Text) -> Response:
        """Ask the teacher's address once with each key, as a part of the page."""
        data, _ = _parsed(said.yaml)
        generate = Recipe.from_dict(data).generate
        found = probe(generate.teacher, generate.endpoint)
        return HTMLResponse(fragment("tried.html.j2", found=found))

    @router.post("/runs")
    async def start(request: Request) -> Response:
        said = fields_of(await request.body())
        text = said.get("yaml", "").replace("\r\n", "\n")
        folder = begin(studio, text)
        studio.launcher.start(folder, studio.project, anyway="anyway" in said)
        return RedirectResponse(f"/runs/{quote(folder.name)}", 303)

    return router


def begin(studio: Studio, text: str) -> Path:
    """Make the run's folder with its recipe. Errors: RecipeError for the text or a name that is
    taken, StoreError for the disk."""
    data, _ = _parsed(text)
    recipe = Recipe.from_dict(data)
    folder = studio.project / "runs" / recipe.name
    if folder.exists():
        raise RecipeError(EXISTS.format(recipe.name))
    with disk_errors(folder, "create"):
        folder.mkdir(parents=True)
    write_atomic(folder / "recipe.yaml", text)
    return folder


def _parsed(text: str) -> tuple[dict[str, Any], fields.Places]:
    if len(text) > fields.LARGEST_FILE:
        raise RecipeError("The text is larger than 1 MiB; that is no recipe.")
    return fields.parse(text, "recipe")


def _read(studio: Studio, text: str) -> dict[str, Any]:
    """The form of a text and what is wrong with it. Text that is no YAML has no form."""
    try:
        data, _ = _parsed(text)
    except RecipeError as error:
        return {"sections": [], "mistakes": {}, "general": [str(error)], "asks": False}
    at_field, others = recipe_form.mistakes(copy.deepcopy(data))
    name = data.get("name")
    if "name" not in at_field and (studio.project / "runs" / str(name)).exists():
        at_field["name"] = EXISTS.format(name)
    ingest, generate = data.get("ingest"), data.get("generate")
    if isinstance(ingest, dict) and ingest.get("sources") == []:
        at_field["ingest.sources"] = NO_FILES
    return {
        "sections": recipe_form.form(data),
        "mistakes": at_field,
        "general": others,
        "asks": isinstance(generate, dict) and is_endpoint(str(generate.get("teacher", ""))),
    }


def _of_documents(studio: Studio, sources: Sequence[str]) -> list[str]:
    """Those that are documents/ or one of its files; other recipes may begin with them."""
    known = {source for source, _ in files_of(studio.project)}
    return [one for one in sources if one in known or (one == DOCUMENTS and known)]


def _begin(
    studio: Studio, source: str, run: str, own: bool, used: Sequence[str]
) -> tuple[str, str]:
    """What the page begins with: the choice's value, and the recipe's text under a free name.

    own: a built-in recipe is for one's own files, also if there are none yet. used: its sources.
    """
    known = builtin_recipes()
    if run:
        begun, text = f"run={run}", _of_run(studio, run)
    elif source == OWN or (not source and (studio.project / OWN).is_file()):
        with disk_errors(studio.project / OWN, "read"):
            begun, text = f"from={OWN}", (studio.project / OWN).read_text("utf-8", "replace")
    else:
        if not source:
            own, used = True, used or _of_documents(studio, [DOCUMENTS])
        own = own or bool(used)
        source = source or "quickstart"
        if source not in known:
            raise UsageError(f"There is no recipe {source[:64]}.", f"There are {', '.join(known)}.")
        begun, text = f"from={source}", known[source].read_text("utf-8")
    data, _ = _parsed(text)
    name = _free_name(studio, str(data.get("name", "run")))
    if name != data.get("name"):
        text = recipe_text.put(text, ("name",), name)
    if own:
        text = recipe_text.put(text, SOURCES, list(used))
        files = [Path(source) for source, _ in files_of(studio.project)]
        files = [one for one in files if DOCUMENTS in used or one.as_posix() in used]
        text = _with_readers(text, map(str, files))
        if files and _is_of_sample(data):
            text = _as_own(studio, text, files[0].stem if len(files) == 1 else DOCUMENTS)
    return begun, text


def _is_of_sample(data: dict[str, Any]) -> bool:
    """Whether a recipe is a built-in one whose files were not named yet, or are the sample."""
    ingest = data.get("ingest")
    sources = ingest.get("sources") if isinstance(ingest, dict) else None
    name, described = str(data.get("name")), data.get("description")
    return (
        isinstance(sources, list)
        and all(str(one).startswith(SAMPLE) for one in sources)
        and any(re.fullmatch(rf"{re.escape(one)}(-\d+)?", name) for one in builtin_recipes())
        and any(described == _description(one) for one in builtin_recipes())
    )


def _as_own(studio: Studio, text: str, name: str) -> str:
    """A built-in recipe's text for files of one's own: under a name like theirs, without the words
    about the sample."""
    name = re.sub(r"[^a-z0-9]+", "-", name.lower())[:40].strip("-") or DOCUMENTS
    text = re.sub(r"\A(#.*\n)+\s*", "", text)
    text = re.sub(r"^(?: *#.*\n)+(?= *sources:)", "", text, flags=re.MULTILINE)
    text = recipe_text.drop(text, ("description",))
    return recipe_text.put(text, ("name",), _free_name(studio, name))


def _of_run(studio: Studio, name: str) -> str:
    path = find_run(studio, name).folder / "recipe.yaml"
    with disk_errors(path, "read"):
        return path.read_text("utf-8", "replace")


def _free_name(studio: Studio, name: str) -> str:
    taken, number, free = studio.project / "runs", 2, name
    while (taken / free).exists():
        free, number = f"{name[:58]}-{number}", number + 1
    return free


def _bases(studio: Studio) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """What a recipe can begin from, in groups: (value, name, description)."""
    groups = []
    if (studio.project / OWN).is_file():
        groups.append(("This project", [(f"from={OWN}", OWN, "the project's own recipe")]))
    built = [(f"from={name}", name, _description(name)) for name in builtin_recipes()]
    groups.append(("Recipes", built))
    runs = [(f"run={one.name}", one.name, one.words) for one in all_runs(studio)]
    if runs:
        groups.append(("Like an earlier run", runs))
    return groups


@cache
def _description(name: str) -> str:
    return Recipe.load(name).description


def _sources(data: dict[str, Any], said: Sources) -> list[str]:
    """The sources with those that were added; the first of one's own replaces the sample."""
    ingest = data.get("ingest")
    given = ingest.get("sources") if isinstance(ingest, dict) else None
    old = [str(one) for one in given] if isinstance(given, list) else []
    kept = [one for one in old if one not in said.drop]
    if said.add:
        kept = [one for one in kept if not one.startswith(SAMPLE)]
    folders = [Path(one) for one in kept]
    new = [one for one in said.add if not any(Path(one).is_relative_to(path) for path in folders)]
    return [*kept, *dict.fromkeys(new)]


def _with_readers(text: str, files: Iterable[str]) -> str:
    """The recipe, with the plug-ins that those files need and it does not name."""
    ingest = _parsed(text)[0].get("ingest")
    given = ingest.get("readers") if isinstance(ingest, dict) else None
    named = list(given) if isinstance(given, list) else []
    known = {one.get("name") for one in named if isinstance(one, dict)}
    new = [{"name": name} for name in plugins_for(files) if name not in known]
    return recipe_text.put(text, READERS, [*named, *new]) if new else text


def plan_of(found: Plan) -> str:
    """A plan as a part of a page."""
    total: dict[str, float] = {}
    for step in found:
        for name, value in step.estimate.items():
            before = total.get(name, 0.0)
            total[name] = max(before, value) if name == "memory_bytes" else before + value
    columns = [one for one in display.COSTS if one[0] in BESIDE and one[0] in total]
    below = [
        f"{form(total[name])} {title}"
        for name, title, form in display.COSTS
        if name not in BESIDE and total.get(name)
    ]
    return fragment(
        "plan.html.j2",
        plan=found,
        columns=columns,
        below=below,
        total=total,
        parameters=display.parameters,
        processor=this_processor(),
        advice=[one for step in found for one in step.advice if not one.same],
        reused=[step.name for step in found if step.action == "reuse"],
        machine=sum(one.refused for one in found.shortages),
    )
