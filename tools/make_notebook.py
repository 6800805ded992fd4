"""Write docs/notebooks/potstill.ipynb: documents to a chat in a notebook, on Colab or at home.

    python tools/make_notebook.py            write it
    python tools/make_notebook.py --check    exit 1 if it is not what this file says

In: the cells below. Out: a notebook of format 4.5 without outputs, whose cell ids do not change.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

PATH = Path(__file__).parent.parent / "docs" / "notebooks" / "potstill.ipynb"
CELLS = [
    ("markdown", """
# Potstill: from a folder of documents to a small model

A teacher writes questions and answers about your documents, a student cut from it learns them, and
a report says how much was kept. It runs on a plain processor; with the settings below in about a
quarter of an hour. The same, step by step: the tutorial in Potstill's documentation."""),
    ("code", """
%pip install --quiet "potstill[documents,llamacpp,train,generate,curate,report,serve]"
"""),
    ("code", "!potstill doctor"),
    ("markdown", """
## A project and its documents

The recipe `quickstart` has SmolLM2-135M as teacher. Put your own documents into `kiln/documents`;
here it is the sample handbook that comes with Potstill."""),
    ("code", """
!potstill new kiln --recipe quickstart
%cd kiln
import shutil

from potstill.sample import sample_path

shutil.copy(sample_path("handbook.pdf"), "documents")"""),
    ("markdown", "## What it would do, and what it needs"),
    ("code", "!potstill plan recipe.yaml"),
    ("markdown", "## Run it\n\nInterrupted, the same cell goes on where it was."),
    ("code", "!potstill run recipe.yaml"),
    ("markdown", "## What was kept"),
    ("code", """
from pathlib import Path

from IPython.display import HTML

HTML(Path("runs/kiln/report.html").read_text("utf-8"))"""),
    ("markdown", "## Talk to the student"),
    ("code", '!potstill chat kiln "Who is the station warden?"'),
    ("markdown", "## Take it along\n\nThe exported files, each with what it lost."),
    ("code", "!potstill export kiln\n!ls -lh runs/kiln/export"),
]  # fmt: skip


def notebook() -> str:
    """The notebook's text."""
    cells = []
    for number, (kind, text) in enumerate(CELLS):
        cell: dict[str, object] = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}}
        if kind == "code":
            cell |= {"execution_count": None, "outputs": []}
        cells.append(cell | {"source": text.strip().splitlines(keepends=True)})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {
        "cells": cells,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    """Write or check."""
    if "--check" not in sys.argv[1:]:
        PATH.parent.mkdir(parents=True, exist_ok=True)
        PATH.write_text(notebook(), "utf-8")
    elif not PATH.exists() or PATH.read_text("utf-8") != notebook():
        print(
            f"{PATH} is not what tools/make_notebook.py says: run `make format`.", file=sys.stderr
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
