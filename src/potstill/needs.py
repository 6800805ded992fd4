"""Which models a recipe needs, said before any of them is used.

In: a `Recipe`. Out: its models, each with what fetching it takes, its licence, and what stands in
the way. Fetches nothing. Knows nothing of what the stages do with a model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from potstill.errors import MissingExtraError, UnavailableError
from potstill.inference.endpoint import only_writes
from potstill.models import hub
from potstill.models.catalogue import published
from potstill.models.packages import check_terms, is_fetched, pinned
from potstill.models.refs import Reference, cached_snapshot, parse
from potstill.models.size import parameters
from potstill.recipe import Recipe

NAMES = ("teacher", "model", "encoder")
"""Recipe fields that hold a model reference, wherever in a section they are."""
ROLES = (
    ("distill.teacher", "teacher"),
    ("distill.student", "student"),
    ("generate.paraphrases", "rewords questions"),
    ("curate.encoder", "finds duplicates"),
)
PACKAGE = "pypi:"
Values = dict[str, Any]


@dataclass(frozen=True)
class ModelNeed:
    """A model that a recipe names."""

    reference: str
    fields: tuple[str, ...]
    """Where the recipe names it: distill.student.model."""
    parameters: int | None
    """None: nobody tells."""
    here: bool
    """Whether it is on this machine, whole."""
    download_bytes: int | None
    """What would be fetched; None: nobody tells."""
    licence: str
    """Empty: nobody tells, or it is the user's own."""
    gated: bool
    """Whether terms must be accepted, at `page`, before it is fetched."""
    page: str
    """Where the model and its terms are described; empty for files of the user's own."""
    problem: str = ""
    """What stands in the way of fetching it; empty: nothing that is known."""
    remedy: str = ""

    @property
    def role(self) -> str:
        """What it is there for, in a word or two."""
        words = [word for begin, word in ROLES if any(one.startswith(begin) for one in self.fields)]
        if "generate.teacher" in self.fields and "teacher" not in words:
            words.append("writes rows")
        return ", ".join(words) or ", ".join(sorted(self.sections))

    @property
    def sections(self) -> frozenset[str]:
        """The recipe's sections that name it."""
        return frozenset(one.partition(".")[0] for one in self.fields)


def models_of(recipe: Recipe, *, ask: bool = True) -> tuple[ModelNeed, ...]:
    """Every model that a run of the recipe opens, in the order of the stages, each once.

    ask: whether the hub may be asked about those that are not here. Errors: ModelError for a
    reference that names nothing.
    """
    places: dict[str, list[str]] = defaultdict(list)
    for section, values in _used(recipe).items():
        for field, reference in _references(values, section):
            places[reference].append(field)
    return tuple(_need(text, tuple(fields), ask) for text, fields in places.items())


def _used(recipe: Recipe) -> Mapping[str, Values]:
    """The sections as plain values, without what is switched off."""
    values = recipe.model_dump(mode="json")
    used = {name: dict(one) for name, one in values.items() if isinstance(one, dict)}
    if used["correct"].get("method") == "none":
        del used["correct"]
    if used["curate"].get("semantic_duplicate") is None:
        used["curate"].pop("encoder", None)
    teachers = used["distill"].get("teachers")
    if teachers and all(one["teacher"] for one in teachers):
        del used["distill"]["teacher"]
    return used


def _references(values: Any, place: str) -> Iterator[tuple[str, str]]:
    """(field, reference) of each model below `place`; those behind an address or a plug-in are left
    out."""
    if isinstance(values, list):
        for number, one in enumerate(values):
            yield from _references(one, f"{place}.{number}")
        return
    if not isinstance(values, dict):
        return
    for name, value in values.items():
        here = f"{place}.{name}"
        if name not in NAMES or not isinstance(value, str):
            yield from _references(value, here)
        elif value and not only_writes(value) and values.get("backend") != "fake":
            yield here, value


def _need(text: str, fields: tuple[str, ...], ask: bool) -> ModelNeed:
    if text.startswith(PACKAGE):
        return _of_package(text, fields)
    reference = parse(text)
    if reference.kind == "hub":
        return _of_hub(reference, fields, ask)
    return ModelNeed(text, fields, parameters(reference), True, 0, "", False, "")


def _of_package(text: str, fields: tuple[str, ...]) -> ModelNeed:
    name, _, version = text.removeprefix(PACKAGE).partition("==")
    package = pinned(name.strip(), version.strip() or None)
    here, terms = is_fetched(package), package.terms
    problem = remedy = ""
    try:
        check_terms(package)
    except UnavailableError as error:
        problem, remedy = error.message, error.hint
    return ModelNeed(
        text,
        fields,
        package.parameters,
        here,
        0 if here else package.megabytes * 10**6,
        package.licence,
        terms is not None,
        terms.address if terms else "",
        problem,
        remedy,
    )


def _of_hub(reference: Reference, fields: tuple[str, ...], ask: bool) -> ModelNeed:
    name = reference.name
    known = published(name)
    here = cached_snapshot(reference) is not None
    said, problem, remedy = None, "", ""
    if ask and not here:
        try:
            said = hub.check(name, reference.revision)
        except (UnavailableError, MissingExtraError) as error:
            problem, remedy = error.message, error.hint
    count = known.parameters if known else None
    if ask or here:
        count = parameters(reference)
    size = (said and said.bytes) or (known.bytes if known else 2 * count if count else None)
    return ModelNeed(
        str(reference),
        fields,
        count,
        here,
        0 if here else size,
        (said and said.licence) or (known.licence if known else ""),
        said.gated if said else bool(known and known.gated),
        hub.page(name),
        problem,
        remedy,
    )
