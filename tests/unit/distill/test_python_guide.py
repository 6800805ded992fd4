"""The guides to Python and to plug-ins: their code runs, and what they call stable is there."""

from __future__ import annotations

import inspect
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from studio_runs import make_run

import potstill
from potstill import distill, errors, plugins
from potstill.distill import losses
from potstill.models.load import load_model, load_tokenizer
from potstill.models.save import save_model
from potstill.models.surgery import drop_layers
from potstill.records import Example, Provenance, Turn

DOCS = Path(__file__).parents[3] / "docs"
GOLDEN = Path(__file__).parents[1] / "public_names.json"
NOTE = "The boiler of unit 7 holds 1250 litres. Valve B2 opens at 3.5 bar. The keeper notes it. "


def blocks(guide: str) -> list[str]:
    text = (DOCS / "guides" / guide).read_text("utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def execute(guide: str, names: dict[str, Any]) -> int:
    """Run the guide's examples one after the other, as a reader would."""
    found = blocks(guide)
    for example in found:
        exec(compile(example, guide, "exec"), names)
    return len(found)


@pytest.mark.whole
def test_the_python_guides_examples_run(
    teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(teacher_folder, tmp_path / "teacher")
    tokenizer = load_tokenizer(teacher_folder)
    save_model(drop_layers(load_model(teacher_folder), [2]), tokenizer, tmp_path / "student")
    (tmp_path / "notes.md").write_text(NOTE * 8, "utf-8")
    make_run(tmp_path / "other", "made")  # its store is not the examples'
    shutil.copytree(tmp_path / "other" / "runs", tmp_path / "runs")
    report = {"models": {"distilled": {"metrics": {"kl": {"value": 0.25}}}}}
    (tmp_path / "runs" / "made" / "report.json").write_text(json.dumps(report))

    names: dict[str, Any] = {"__name__": "guide"}
    assert execute("python-api.md", names) == 6

    assert names["finished"].artifact("generate").path("examples.jsonl").stat().st_size > 0
    assert names["models"] == report["models"]
    assert math.isfinite(names["trainer"].state.log_history[-1]["train_loss"])
    assert names["history"][-1] < names["history"][0]


def test_the_plug_in_guides_examples_work(tmp_path: Path) -> None:
    import torch

    names: dict[str, Any] = {"__name__": "guide"}
    assert execute("plugins.md", names) == 3
    (tmp_path / "a.note").write_text("one\n%%\ntwo")
    reading = names["READER"].make({})(tmp_path / "a.note")
    assert [block.strip() for block in reading.pages[0].blocks] == ["one", "two"]
    (tmp_path / "b.note").write_text("one")
    with pytest.raises(plugins.UnusableError):
        names["READER"].make({})(tmp_path / "b.note")
    judge = names["FILTER"].make({"words": ["valve"]})
    source = Provenance(document="d", chunk="c")
    turns = (Turn(role="user", content="?"), Turn(role="assistant", content="B2"))
    row = Example(id="1", turns=turns, question="Which valve opens?", provenance=source)
    assert judge(row, None).reason == "rude"
    assert judge(row.model_copy(update={"question": "Who?"}), None).keep
    same = torch.randn(2, 5).log_softmax(-1)
    assert names["DIVERGENCE"].rows(same, same).tolist() == [0.0, 0.0]
    example = DOCS.parent / "tests" / "support" / "example_plugin"
    assert (example / "pyproject.toml").is_file()


def public() -> dict[str, str]:
    """Each stable name and its signature, or what it is."""
    found: dict[str, str] = {}
    for name in potstill.__all__:
        found[f"potstill.{name}"] = described(getattr(potstill, name))
    for name in ("Distiller", "Distilled", "Objective"):
        found[f"potstill.distill.{name}"] = described(getattr(distill, name))
    for name, value in vars(losses).items():
        if inspect.isfunction(value) and "weights" in inspect.signature(value).parameters:
            found[f"potstill.distill.losses.{name}"] = described(value)
    for name in plugins.__all__:
        found[f"potstill.plugins.{name}"] = described(getattr(plugins, name))
    for name, value in vars(errors).items():
        if inspect.isclass(value) and issubclass(value, errors.PotstillError):
            found[f"potstill.errors.{name}"] = f"exit code {value.exit_code}"
    return dict(sorted(found.items()))


def described(value: Any) -> str:
    if inspect.isclass(value) and hasattr(value, "model_fields"):
        return "fields " + ", ".join(value.model_fields)
    if inspect.isclass(value):
        methods = [
            f"{name}{parameters(method)}"
            for name, method in inspect.getmembers(value, inspect.isroutine)
            if not name.startswith("_") and name in vars(value)
        ]
        return " ".join([f"class{parameters(value)}", *methods])
    return parameters(value) if callable(value) else type(value).__name__


def parameters(value: Any) -> str:
    """Names, kinds ('*, ' before those by name alone) and which have a default."""
    try:
        signature = inspect.signature(value)
    except ValueError:
        return "(...)"
    words = []
    for one in signature.parameters.values():
        kind = {one.KEYWORD_ONLY: "*, ", one.VAR_POSITIONAL: "*", one.VAR_KEYWORD: "**"}
        words.append(f"{kind.get(one.kind, '')}{one.name}{'=' * (one.default is not one.empty)}")
    return f"({', '.join(words)})"


def test_what_is_stable_is_as_it_was() -> None:
    """A change here is one for people who use Potstill: say it in the changelog, then write the
    file anew (`python tests/unit/distill/test_python_guide.py`)."""
    assert public() == json.loads(GOLDEN.read_text("utf-8"))


def test_the_guide_lists_what_is_stable() -> None:
    text = (DOCS / "guides" / "python-api.md").read_text("utf-8").partition("## What is stable")[2]
    for name in [*potstill.__all__, "Distiller", "Distilled", "Objective"]:
        assert f"`{name}`" in text or name == "__version__"


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(public(), indent=1) + "\n", "utf-8")
