"""Whatever a recipe's text is, it is a recipe or one RecipeError, soon and in little memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from potstill.errors import RecipeError
from potstill.recipe import Recipe, builtin_recipes

CORPUS = sorted((Path(__file__).parent / "corpus" / "recipes").iterdir())
RECIPES = [path.read_text("utf-8") for path in builtin_recipes().values()]
SECONDS = 20.0
"""Of the processor: far above what is needed, and far below what a bomb would take."""
PIECES = """ &a *a <<: [*a, *a] !!int !!float !!bool !!timestamp !!binary !!set !!omap !!null !!map
!!python/name:os.system ? : - | > {} [] {a: [ ]} .nan .inf -1 1e999 0x0 2001-99-99 1:1 ~ ''
"\\0" "\\ud800" # --- ... %YAML \t plugin: plugin:x openai: pypi: fresh: ../ /etc/passwd null true
distill: generate: ingest: curate: evaluate: export: task: spans""".split()


def outcome(source: Path | str, *overrides: str) -> str:
    """The recipe's name, or the error's line; any other error comes through."""
    try:
        said = Recipe.load(source, overrides).name
    except RecipeError as error:
        said = str(error)
    assert "\n" not in said
    assert len(said) < 3000
    return said


LOADING = """
import resource, sys, time
from pathlib import Path
from potstill.errors import RecipeError
from potstill.recipe import Recipe
if sys.platform == "linux":
    resource.setrlimit(resource.RLIMIT_AS, (2_000_000_000, 2_000_000_000))
for path in map(Path, sys.argv[1:]):
    began = time.process_time()
    try:
        Recipe.load(path)
        kind = "a recipe"
    except RecipeError as error:
        kind = "one line" if str(error).count("\\n") == 0 else "many lines"
    except BaseException as error:
        kind = type(error).__name__
    print(path.stem, kind, round(time.process_time() - began, 2), sep="\\t", flush=True)
"""


def test_the_corpus_is_answered_in_one_line_soon() -> None:
    """In a process of its own, with little memory: what is a bomb would take all there is."""
    done = subprocess.run(
        [sys.executable, "-c", LOADING, *map(str, CORPUS)],
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    answered = [line.split("\t") for line in done.stdout.splitlines()]
    assert [name for name, _, _ in answered] == [path.stem for path in CORPUS]
    assert {kind for _, kind, _ in answered} == {"a recipe", "one line"}
    assert {name for name, kind, _ in answered if kind == "a recipe"} == {"bom", "nul-escaped"}
    assert all(float(seconds) < SECONDS for _, _, seconds in answered)


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A built-in recipe with pieces put in, cut out, doubled and moved."""
    text = draw(st.sampled_from(RECIPES))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(text)))
        end = min(len(text), at + draw(st.integers(0, 60)))
        piece = draw(st.sampled_from(PIECES) | st.text(max_size=12) | st.just(text[at:end]))
        text = text[:at] + piece + text[draw(st.sampled_from([at, end])) :]
    return text


def check(text: str, folder: Path) -> None:
    path = folder / "fuzz.yaml"
    path.write_text(text, "utf-8", errors="surrogatepass")
    outcome(path)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=mutated())
def test_mutated_recipes(text: str, tmp_path: Path) -> None:
    check(text, tmp_path)


@pytest.mark.slow
@settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=mutated())
def test_many_mutated_recipes(text: str, tmp_path: Path) -> None:
    check(text, tmp_path)


VALUES = st.sampled_from([*PIECES, *(path.read_text("utf-8", "replace")[:9000] for path in CORPUS)])


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    place=st.sampled_from(["seed", "distill.divergence", "ingest.sources", "x.y", "task"]),
    value=VALUES,
)
def test_overrides(place: str, value: str) -> None:
    outcome("quickstart", f"{place}={value}")


@pytest.mark.parametrize("place", ["task", "seed", "name", "distill.epochs", "x.y"])
@pytest.mark.parametrize(
    "number", ["0x" + "f" * 4000, "-0b" + "1" * 20000, "[0x" + "f" * 4000 + "]"]
)
def test_a_number_that_nobody_can_print_is_one_error(place: str, number: str) -> None:
    """Found by the test above: hexadecimal has no limit when it is read, decimal has one when it is
    said."""
    assert "more than 4,000 digits" in outcome("quickstart", f"{place}={number}")


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "\ud800", "x" * 300 + ".yaml"])
def test_names_of_recipes(name: str) -> None:
    assert "no recipe" in outcome(name)
