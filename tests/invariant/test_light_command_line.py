"""The command line answers before anything heavy is loaded, and the walls stand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from potstill.core.extras import EXTRAS

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
print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


def modules_of(*arguments: str) -> set[str]:
    """All modules, by their whole names, after a command."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(arguments)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return set(json.loads(done.stderr.strip().splitlines()[-1]))


def modules_loaded_by(*arguments: str) -> set[str]:
    return {name.partition(".")[0] for name in modules_of(*arguments)}


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
        ("plugins",),
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


def test_help_loads_the_commands_and_nothing_behind_them() -> None:
    """What makes `potstill --help` slow is imports; times on a busy machine say little."""
    loaded = modules_of("--help")
    own = [name for name in loaded if name.startswith("potstill.")]
    assert [name for name in own if not name.startswith(("potstill.cli", "potstill.errors"))] == []
    slow = {"pydantic", "yaml", "asyncio", "httpx2", "filelock", "importlib.metadata", "sqlite3"}
    assert slow & loaded == set()
    assert len(loaded) < 450


BARE = """
import importlib.abc, importlib.metadata, sys
from potstill.core.extras import EXTRAS
hidden = {name.partition(".")[0] for modules in EXTRAS.values() for name in modules}
hidden |= {"huggingface_hub", "tokenizers"}
absent = {name for modules in EXTRAS.values() for name in modules.values()}

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
known = importlib.metadata.version

def version(name):
    if name in absent:
        raise importlib.metadata.PackageNotFoundError(name)
    return known(name)

importlib.metadata.version = version
sys.argv = ["potstill", "doctor"]
from potstill.cli import main
main()
"""


def test_the_doctor_of_a_bare_install_says_what_to_add(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BARE], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert done.returncode == 6, done.stderr
    assert "Traceback" not in done.stderr
    for extra in EXTRAS:
        assert f'pip install "potstill[{extra}]"' in done.stdout


def test_the_studio_starts_without_what_computes() -> None:
    """Nor without what another extra brings: `studio` alone is enough to open it."""
    others = {"torch", "transformers", "optuna", "sqlalchemy", "ray", "pyarrow"}
    code = f"import sys, potstill.studio.app; assert not {others} & {{*sys.modules}}"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
