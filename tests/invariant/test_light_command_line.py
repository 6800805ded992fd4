"""The command line answers before anything heavy is loaded, and the walls stand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {
    "torch",
    "transformers",
    "xllamacpp",
    "numpy",
    "jinja2",
    "pypdfium2",
    "docx",
    "rapidocr",
    "onnxruntime",
    "tokenizers",
    "peft",
    "accelerate",
    "fastapi",
    "uvicorn",
}
HUB = {"doctor", "recipes", "plan"}
"""Commands that may ask the model hub; no other opens a connection."""
PROBE = """
import json, sys
sys.argv = ["potstill", *json.loads(sys.argv[1])]
from potstill.cli import main
try:
    main()
except SystemExit:
    pass
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})), file=sys.stderr)
"""


def modules_loaded_by(*arguments: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(arguments)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return set(json.loads(done.stderr.strip().splitlines()[-1]))


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("run", "--help"),
        ("serve", "--help"),
        ("studio", "--help"),
        ("keys", "list"),
        ("config", "check", "quickstart"),
        ("config", "schema"),
        ("doctor",),
        ("recipes",),
        ("recipes", "quickstart", "--json"),
        ("plan", "quickstart", "--set", "teacher=google/gemma-7b-it"),
    ],
)
def test_nothing_heavy_is_loaded(arguments: tuple[str, ...]) -> None:
    heavy = HEAVY if arguments[0] in HUB else HEAVY | {"httpx2"}
    assert modules_loaded_by(*arguments) & heavy == set()


def test_the_plan_of_a_model_that_is_not_drawn_yet_draws_none(tmp_path: Path) -> None:
    loaded = modules_loaded_by("plan", "gpt2-qa-local", "--project", str(tmp_path))
    assert loaded & HEAVY <= {"jinja2"}  # which reads the recipe's template


def test_importing_the_package_loads_almost_nothing() -> None:
    code = "import sys, potstill; assert 'pydantic' not in sys.modules; assert potstill.__all__"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
