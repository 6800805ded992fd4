"""The recipe gpt2-qa-local, cut down, from rows to a chat in llama.cpp; and its study."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from potstill.models.load import gguf_metadata
from potstill.recipe import Recipe

CUT = (
    "generate.paraphrases=[]",
    "correct.max_tokens=6000",
    "correct.validations=1",
    "distill.max_tokens=3000",
    "distill.validations=1",
    "distill.student.calibration_tokens=128",
    "evaluate.max_examples=4",
    "evaluate.speed_rounds=1",
    "export.max_examples=3",
    "export.speed_rounds=1",
    # So short a training leaves a student that says nothing in particular.
    "export.quantised_min_agreement=0.1",
    "export.quantised_max_f1_loss=1.0",
)
QUESTION = "Which kind of entry makes pitch barrel stock grow?"


def potstill(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "potstill", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=1500)


@pytest.mark.slow
def test_the_recipe_ends_in_a_gpt2_that_is_prompted_as_it_was_trained(tmp_path: Path) -> None:
    options = [word for one in CUT for word in ("--set", one)]
    project = ["--project", str(tmp_path)]
    done = potstill("run", "gpt2-qa-local", *options, *project)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "gpt2-qa-local"
    report = json.loads((folder / "report.json").read_text())
    models = report["models"]
    assert {"teacher", "uncorrected", "undistilled", "finetuned", "distilled"} <= set(models)
    assert models["distilled"]["parameters"] < models["teacher"]["parameters"]
    assert {"bleu", "corpus_bleu", "chrf", "rougeL", "f1", "em"} <= set(
        models["distilled"]["metrics"]
    )
    corrected = models["teacher"]["metrics"]["perplexity"]["value"]
    assert corrected < models["uncorrected"]["metrics"]["perplexity"]["value"]

    exported = json.loads((folder / "export" / "export.json").read_text())
    for hop in exported["parity"][1:]:
        assert hop["prompt_ids_equal"]
        assert hop["stops"]
    template = Recipe.load("gpt2-qa-local").template
    for file in (folder / "export").glob("*.gguf"):
        metadata = gguf_metadata(file)
        assert metadata["general.architecture"] == "gpt2"
        assert metadata["tokenizer.ggml.pre"] == "gpt-2"
        assert metadata["tokenizer.chat_template"] == template
    modelfile = (folder / "export" / "Modelfile").read_text()
    assert "Question: {{ .Content }}" in modelfile
    assert 'PARAMETER stop "<|endoftext|>"' in modelfile

    said = potstill("chat", "gpt2-qa-local", QUESTION, *project)
    assert said.returncode == 0, said.stderr
    assert potstill("verify", "gpt2-qa-local", *project).returncode == 0


@pytest.mark.slow
def test_its_study_finds_a_recipe(tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(
        "name: short\n"
        "recipe: gpt2-qa-local\n"
        'set: ["generate.paraphrases=[]", correct.max_tokens=3000, correct.validations=1,\n'
        "      distill.max_tokens=3000, distill.validations=2]\n"
        "search:\n"
        "  distill.ce_weight: {low: 0.1, high: 1.0}\n"
        "  distill.kd_weight: {low: 0.1, high: 1.0}\n"
        "  distill.learning_rate: {low: 2e-4, high: 3e-3, log: true}\n"
        "objective: {validation_perplexity: minimize}\n"
        "trials: 2\n"
        "random_trials: 2\n"
        "prune: {warmup_trials: 1, warmup_validations: 0}\n"
    )
    done = potstill("tune", str(study), "--project", str(tmp_path))
    assert done.returncode == 0, done.stderr
    best = Recipe.load(tmp_path / "studies" / "short" / "best.yaml")
    assert best.template == Recipe.load("gpt2-qa-local").template
    assert best.teacher == "fresh:gpt2-mini"
