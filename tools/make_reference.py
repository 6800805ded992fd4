"""Write docs/reference/ from the code, so that it cannot disagree with it.

    python tools/make_reference.py            write the pages
    python tools/make_reference.py --check    exit 1 if a page is not what the code says

In: the command line's own help, the recipe's fields, the errors, the public docstrings.
Out: Markdown pages. Knows no stage by name.
"""

from __future__ import annotations

import inspect
import re
import sys
import typing
from pathlib import Path
from types import UnionType
from typing import Any

import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

import potstill
from potstill import (
    builtin,
    disagreeing,
    distill,
    drifting,
    editing,
    errors,
    improve,
    needs,
    outlook,
    plugins,
    project,
    service,
    studio,
    tune,
)
from potstill.cli import app
from potstill.costs import binding, cluster, decoder, signals, stages, training
from potstill.distill import losses
from potstill.evaluate import (
    answer_scores,
    compare,
    disagreement,
    gate,
    judge,
    overlap,
    predictions,
    trials,
)
from potstill.models.spans import decoding, reader
from potstill.recipe import Recipe, SpanRecipe
from potstill.serve import drift, review
from potstill.serve.gateway import ServeConfig

FOLDER = Path(__file__).parent.parent / "docs" / "reference"
NOTE = "<!-- Written by tools/make_reference.py from the code; change the code, not this page. -->"

BEFORE_A_RUN = {
    outlook: ["Plan", "Shortage"],
    needs: ["models_of", "ModelNeed"],
    builtin: ["recipes", "describe", "Described"],
    project: ["new_project", "Project"],
}
"""What is known before anything is started or fetched."""
PLUGINS = """installed problem_of Plugin ReaderPlugin Reading PageText UnusableError FilterPlugin
Surroundings Verdict DivergencePlugin TeacherPlugin TextModel Request Reply""".split()
"""What a plug-in is written with."""
COSTS = {
    cluster: ["parse_cluster", "accelerators", "Cluster", "Accelerator"],
    decoder: ["published", "of_size", "Decoder"],
    training: ["Training", "memory_of", "step_of", "sent_of"],
    signals: ["sources", "crossing", "cheapest", "Source"],
    binding: ["bound", "Phase", "Spent"],
    stages: ["ClusterPlan", "StageCost"],
}
"""What anything costs on any hardware, in the order in which one needs the other."""
DRIFT = ["Tested", "mmd_test", "median_bandwidth", "psi", "psi_test", "numbers_test", "holm"]
"""The tests by themselves, for any two samples."""
EVALUATION = {
    predictions: ["score_file", "score_answers"],
    answer_scores: ["Gold", "score_answer", "squad_v2"],
    overlap: ["sentence_bleu", "corpus_bleu", "bleu_counts", "chrf", "rouge"],
    disagreement: ["disagreement", "TokenGap"],
    compare: ["Compared", "compare"],
    gate: ["gate", "fewest_rows"],
    trials: ["compare_versions", "Votes", "newcombe", "wilson", "fisher_exact"],
    judge: ["Vote", "Grade", "Case", "judge_pairs", "judge_grades", "pair_summary", "agreement"],
}
"""What is useful apart from a run."""


def cli_page() -> str:
    """Every command with its arguments and options."""
    group = typer.main.get_command(app)
    lines = [NOTE, "", "# Command line", "", (group.help or "").strip(), ""]
    lines += ["Results go to standard output, progress and errors to standard error.", ""]
    lines += ["| exit code | meaning |", "|---|---|", "| 0 | done |"]
    meanings: dict[int, list[str]] = {}
    for kind in _error_kinds():
        meanings.setdefault(kind.exit_code, []).append(_first_line(kind))
    lines += [f"| {code} | {' '.join(words[:1])} |" for code, words in sorted(meanings.items())]
    lines += ["| 130 | Stopped by Ctrl-C. |", ""]
    for name, command in sorted(_commands(group, "potstill")):
        lines += [f"## `{name}`", "", (command.help or "").strip(), ""]
        rows = [_parameter(one) for one in command.params if one.name != "help"]
        if rows:
            lines += ["| argument or option | meaning |", "|---|---|", *rows, ""]
    return "\n".join(lines).rstrip() + "\n"


def _commands(group: Any, prefix: str) -> list[tuple[str, Any]]:
    found = []
    for name, command in group.commands.items():
        full = f"{prefix} {name}"
        if hasattr(command, "commands"):
            found += _commands(command, full)
        else:
            found.append((full, command))
    return found


def _parameter(one: Any) -> str:
    if not hasattr(one, "is_flag"):
        usage = f"`{one.name.upper()}`" + ("" if one.required else " (optional)")
    else:
        names = ", ".join([*one.opts, *one.secondary_opts])
        value = "" if one.is_flag else f" {one.metavar or str(one.name).upper()}"
        usage = f"`{names}{value}`"
    return f"| {usage} | {_cell(one.help or '')} |"


def recipe_page() -> str:
    """Every field of a recipe, by section."""
    lines = [NOTE, "", "# Recipe", "", _first_paragraph(Recipe), ""]
    lines += ["`potstill config schema` prints the same as JSON Schema, for editors.", ""]
    known: dict[type[BaseModel], str] = {}
    lines += _section("", Recipe, known)
    lines += ["# With `task: spans`", "", _first_paragraph(SpanRecipe), ""]
    for name, field in SpanRecipe.model_fields.items():
        if field.annotation != Recipe.model_fields[name].annotation:
            (kind,) = _models_in(field.annotation)
            lines += _section(name, kind, known)
    return "\n".join(lines).rstrip() + "\n"


def _section(place: str, kind: type[BaseModel], known: dict[type[BaseModel], str]) -> list[str]:
    """The table of a section and of those in it; a kind that was shown before is not repeated."""
    lines = [f"## `{place}`" if place else "## Top level", ""]
    if kind in known:
        return [*lines, f"As `{known[kind]}`.", ""]
    known[kind] = place
    if place:
        lines += [_first_paragraph(kind), ""]
    lines += ["| field | type | default | meaning |", "|---|---|---|---|"]
    inner: list[tuple[str, type[BaseModel]]] = []
    for name, field in kind.model_fields.items():
        nested = _models_in(field.annotation)
        full = f"{place}.{name}" if place else name
        inner += [(full, one) for one in nested]
        plain = not nested or isinstance(field.default, int | float)
        default = _default(field) if plain else ""
        words = _cell(field.description or "")
        lines.append(f"| `{name}` | {_cell(_type(field.annotation))} | {default} | {words} |")
    lines.append("")
    for full, one in inner:
        lines += _section(full, one, known)
    return lines


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [one for part in typing.get_args(annotation) for one in _models_in(part)]


def _type(annotation: Any) -> str:
    if annotation is type(None):
        return "nothing"
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in typing.get_args(annotation))
    if origin in (typing.Union, UnionType):
        return " or ".join(_type(part) for part in typing.get_args(annotation))
    if origin is typing.Annotated:
        return _type(typing.get_args(annotation)[0])
    if origin in (list, tuple, set, frozenset):
        parts = [part for part in typing.get_args(annotation) if part is not Ellipsis]
        return "list of " + " or ".join(_type(part) for part in parts)
    if origin is dict:
        return "map"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return {"str": "text", "int": "whole number", "float": "number", "bool": "yes or no"}.get(
        getattr(annotation, "__name__", ""), str(annotation)
    )


def _default(field: Any) -> str:
    if field.default_factory is not None:
        return f"`{field.default_factory()!r}`"
    if field.default is PydanticUndefined:
        return "needed"
    text = repr(field.default)
    return "see the code" if "\n" in text or len(text) > 60 else f"`{_cell(text)}`"


def python_page() -> str:
    """The public face: what `import potstill` gives."""
    lines = [NOTE, "", "# Python", "", (potstill.__doc__ or "").strip(), ""]
    lines += _names(potstill, potstill.__all__)
    for module, names in BEFORE_A_RUN.items():
        lines += [f"# `{module.__name__}`", "", (module.__doc__ or "").strip(), ""]
        lines += _names(module, names)
    lines += ["# `potstill.plugins`", "", (plugins.__doc__ or "").strip(), ""]
    lines += _names(plugins, PLUGINS)
    for module, names in COSTS.items():
        lines += [f"# `{module.__name__}`", "", (module.__doc__ or "").strip(), ""]
        lines += _names(module, names)
    lines += ["# `potstill.models.spans`", "", (reader.__doc__ or "").strip(), ""]
    lines += _names(reader, ["ReaderSettings", "FoundAnswer"])
    lines += _names(decoding, ["SpanAnswer"])
    lines += ["# `potstill.distill`", "", (distill.__doc__ or "").strip(), ""]
    lines += _names(distill, ["Distiller", "Distilled"])
    lines += ["# `potstill.tune`", "", (tune.__doc__ or "").strip(), ""]
    lines += _names(tune, ["Study", "run_study", "read_study", "Finished", "Trial"])
    lines += ["# `potstill.service`", "", (service.__doc__ or "").strip(), ""]
    lines += _names(service, ["serve_run"])
    lines += ["# `potstill.studio`", "", (studio.__doc__ or "").strip(), ""]
    lines += _names(studio, ["open_studio"])
    lines += _section("potstill.serve.gateway.ServeConfig", ServeConfig, {})
    lines += ["# `potstill.disagreeing`", "", (disagreeing.__doc__ or "").strip(), ""]
    lines += _names(disagreeing, ["disagreement_on"])
    lines += ["# `potstill.editing`", "", (editing.__doc__ or "").strip(), ""]
    lines += _names(editing, ["decide", "take_back", "edits_of", "waiting", "rows_of"])
    lines += ["# `potstill.drifting`", "", (drifting.__doc__ or "").strip(), ""]
    lines += _names(drifting, ["read_drift", "dismiss", "write_drift_page", "taught"])
    lines += ["# `potstill.serve.drift`", "", (drift.__doc__ or "").strip(), ""]
    lines += _names(drift, DRIFT)
    lines += ["# `potstill.improve`", "", (improve.__doc__ or "").strip(), ""]
    lines += _names(improve, [name for name in improve.__all__ if name != "ImproveConfig"])
    lines += _section("potstill.improve.ImproveConfig", improve.ImproveConfig, {})
    lines += ["# `potstill.serve.review`", "", (review.__doc__ or "").strip(), ""]
    lines += _names(review, ["review", "right_answer"])
    for module, names in EVALUATION.items():
        lines += [f"# `{module.__name__}`", "", (module.__doc__ or "").strip(), ""]
        lines += _names(module, names)
    lines += ["# `potstill.distill.losses`", "", (losses.__doc__ or "").strip(), ""]
    sums = [
        name
        for name, value in vars(losses).items()
        if "weights" in _parameters(value) and name[0] != "_"
    ]
    lines += _names(losses, sums)
    return "\n".join(lines).rstrip() + "\n"


def _parameters(value: Any) -> list[str]:
    return list(inspect.signature(value).parameters) if inspect.isfunction(value) else []


def _signature(value: Any) -> str:
    """As Python writes it, without the address of a function that is a default."""
    written = str(inspect.signature(value))
    return re.sub(r"<function (?:\S+\.)?(\S+) at 0x[0-9a-f]+>", r"\1", written)


def _names(module: Any, names: list[str]) -> list[str]:
    """Signature and docstring of each."""
    lines: list[str] = []
    for name in names:
        value = getattr(module, name)
        if isinstance(value, str):
            continue
        if inspect.isclass(value):
            made = _signature(value) if "__init__" in vars(value) else ""
            lines += [f"## `{name}{made}`", "", inspect.getdoc(value) or "", ""]
            for method, function in inspect.getmembers(value):
                if method.startswith("_") or method not in vars(value):
                    continue
                if inspect.ismethod(function) or inspect.isfunction(function):
                    signature = _signature(function)
                    lines += [f"### `{name}.{method}{signature}`", ""]
                    lines += [inspect.getdoc(function) or "", ""]
        else:
            lines += [f"## `{name}{_signature(value)}`", "", inspect.getdoc(value) or "", ""]
    return lines


def _error_kinds() -> list[type[errors.PotstillError]]:
    kinds = [one for one in vars(errors).values() if inspect.isclass(one)]
    return [one for one in kinds if issubclass(one, errors.PotstillError)]


def _first_line(kind: Any) -> str:
    return (inspect.getdoc(kind) or "").splitlines()[0]


def _first_paragraph(kind: Any) -> str:
    return (inspect.getdoc(kind) or "").split("\n\n")[0].replace("\n", " ")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main() -> int:
    """Write or check the pages."""
    pages = {"cli.md": cli_page(), "recipe.md": recipe_page(), "python.md": python_page()}
    stale = []
    for name, text in pages.items():
        path = FOLDER / name
        if "--check" in sys.argv[1:]:
            if not path.exists() or path.read_text("utf-8") != text:
                stale.append(str(path))
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
    for path in stale:
        print(f"{path} is not what the code says: run `make format`.", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
