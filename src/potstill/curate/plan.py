"""What curation depends on besides its config, what it will cost, what it leaves for later stages.

In: a CurateConfig, the figures of generation, the project folder. Out: facts, figures. Light.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from potstill.core.costs import seconds
from potstill.core.extras import check_installed, installed_version
from potstill.core.files import count_lines, file_digest
from potstill.core.stage import Facts, Figures
from potstill.curate.config import CurateConfig
from potstill.curate.decontaminate import read_evaluation
from potstill.curate.edits import edits_file, read_edits
from potstill.curate.filter_plugins import filter_facts
from potstill.curate.prepared import prepared_facts, prepared_folder
from potstill.errors import InputError

ROWS_PER_SECOND = 1500
EMBEDDED_PER_SECOND = 250  # sentences of thirty tokens by MiniLM
BYTES_A_ROW = 4000
MEMORY_A_ROW = 14_000
ENCODER_BYTES = 6e8  # torch, and a small encoder's weights


def evaluation_files(config: CurateConfig, project: Path) -> dict[str, Path]:
    """Name -> path of the evaluation sets. Errors: InputError for one that is not there."""
    found = {}
    for name in config.decontaminate_against:
        path = (project / name).resolve()
        if not path.is_relative_to(project.resolve()) or not path.is_file():
            raise InputError(
                f"The evaluation set {name!r} (curate.decontaminate_against) is no file below "
                f"{project}.",
                "Paths start at the project folder; copy the file into it.",
            )
        found[name] = path
    return found


def facts(config: CurateConfig, project: Path) -> Facts:
    """Digests of the evaluation sets, and what tells languages and meanings apart.

    Errors: MissingExtraError for a package that will be needed, InputError for a missing file,
    ModelError for the encoder, where it is used, PluginError: all before time is spent.
    """
    for module in ("rensa", "numpy", "jinja2", "py3langid"):
        check_installed(module, "Curation", "curate")
    for name, path in evaluation_files(config, project).items():
        for _ in read_evaluation(path, name):
            pass  # a line that cannot be read is an error now, not after generation
    parts = {
        f"evaluation {name}": file_digest(path)
        for name, path in evaluation_files(config, project).items()
    }
    parts["tools"] = ", ".join(
        f"{name} {installed_version(name)}" for name in ("rensa", "py3langid")
    )
    parts |= filter_facts(config)
    if config.edits:
        read_edits(edits_file(config, project))  # a line that is no decision is an error now
        parts["edits"] = file_digest(edits_file(config, project))
    if config.prepared:
        parts |= prepared_facts(config, project)
    if config.semantic_duplicate is not None:
        from potstill.models.encoder import encoder_digest

        for module in ("torch", "transformers"):
            check_installed(module, "Finding semantic duplicates", "train")
        parts["encoder"] = encoder_digest(config.encoder)
    return parts


def estimate(config: CurateConfig, earlier: Mapping[str, Figures], project: Path) -> Figures:
    """Few rows of a good teacher are rejected, so none is counted off."""
    if config.prepared:
        return _prepared_estimate(prepared_folder(config, project))
    rows = earlier["generate"]["rows"]
    held_out = config.validation_fraction + config.test_fraction
    semantic = config.semantic_duplicate is not None
    train = rows * (1 - held_out)
    return {
        "train_rows": round(train * (1 + config.typo_variants)),
        "validation_rows": round(rows * config.validation_fraction),
        "test_rows": round(rows * config.test_fraction),
        "seconds": 1
        + seconds(rows, ROWS_PER_SECOND)
        + (seconds(rows, EMBEDDED_PER_SECOND) if semantic else 0),
        "memory_bytes": 1e8 + MEMORY_A_ROW * rows + (ENCODER_BYTES if semantic else 0),
        "disk_bytes": BYTES_A_ROW * rows * (1 + config.typo_variants),
    }


def _prepared_estimate(folder: Path) -> Figures:
    rows = counts(folder)
    total = sum(rows.values())
    return {
        **rows,
        "seconds": 1 + seconds(total, ROWS_PER_SECOND),
        "memory_bytes": 1e8 + MEMORY_A_ROW * total,
        "disk_bytes": BYTES_A_ROW * total,
    }


def counts(data: Path) -> Figures:
    """What a finished curation gave."""
    return {
        f"{split}_rows": count_lines(data / f"{split}.jsonl")
        for split in ("train", "validation", "test")
    }
