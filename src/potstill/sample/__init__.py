"""The samples that are shipped with Potstill: an invented handbook, questions about it, and rows
of questions and answers about an invented company's accounts.

In: a file's name. Out: its path on disk. Everything that they say is made up, so that no language
model can have read it before. `tools/make_sample.py` builds the PDF, the DOCX and the scan from
`handbook.md`, `tools/make_squad.py` the questions, `tools/make_rows.py` the rows. Knows nothing of
recipes or stages.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from potstill.errors import InputError

SUFFIXES = frozenset({".pdf", ".docx", ".md", ".json", ".csv"})


def sample_files() -> dict[str, Path]:
    """Name -> path of every sample file, sorted by name.

    Errors: InputError where the package is not installed as plain files (inside a zip archive).
    """
    folder = resources.files(__name__)
    if not isinstance(folder, Path):
        raise InputError(
            "The sample files cannot be read from inside an archive.",
            "Install potstill as an ordinary package.",
        )
    return {path.name: path for path in sorted(folder.iterdir()) if path.suffix in SUFFIXES}


def sample_path(name: str) -> Path:
    """Path of the sample file `name`. Errors: InputError names the files that exist."""
    files = sample_files()
    if name not in files:
        raise InputError(
            f"There is no sample file {name!r}.",
            f"The sample files are {', '.join(files)}.",
        )
    return files[name]
