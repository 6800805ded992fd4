"""Every benchmark and tool finds what it imports: nobody runs all of them after each change."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = [ROOT / "benchmarks", ROOT / "benchmarks" / "peers", ROOT / "tools"]
SCRIPTS = [one for folder in FOLDERS for one in sorted(folder.glob("*.py"))]


def defined_in(module: Path) -> set[str]:
    """Names that a module has at its top level."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {one.asname or one.name.partition(".")[0] for one in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda one: str(one.relative_to(ROOT)))
def test_what_is_imported_is_there(script: Path) -> None:
    missing = []
    for node in ast.walk(ast.parse(script.read_text("utf-8"))):
        if not isinstance(node, ast.ImportFrom) or node.level or node.module is None:
            continue
        beside = [one / f"{node.module}.py" for one in (script.parent, *FOLDERS)]
        own = next((one for one in beside if one.is_file()), None)
        if own is not None:
            known = defined_in(own)
            missing += [f"{node.module}.{one.name}" for one in node.names if one.name not in known]
        elif node.module.partition(".")[0] == "potstill":
            module = importlib.import_module(node.module)
            for one in node.names:
                if not hasattr(module, one.name):
                    importlib.import_module(f"{node.module}.{one.name}")
    assert missing == []
