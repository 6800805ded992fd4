"""Each claim of the security page names a test, and each test that it names is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text("utf-8")
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
CLAIMS = PAGE.partition("## Claims and their tests")[2].partition("## What is out of scope")[0]


def test_every_test_that_is_named_exists() -> None:
    named = TEST.findall(PAGE)
    assert len(named) > 30
    for path, name in named:
        tree = ast.parse((ROOT / path).read_text("utf-8"))
        functions = {
            one.name for one in tree.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        assert name in functions, f"{path}::{name}"


def test_every_claim_names_a_test() -> None:
    rows = [line for line in CLAIMS.splitlines() if line.startswith("|")]
    claims = [line for line in rows if not line.startswith(("| claim", "|---"))]
    assert len(claims) > 25
    assert [line for line in claims if not TEST.search(line)] == []
