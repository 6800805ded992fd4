"""The export stage of a student that marks answers: safetensors and ONNX, each proven.

In: distill's student, curate's test rows, ingest's chunks, evaluate's figures. Out: safetensors/,
model.onnx, model-int8.onnx, export.json, README.md. Knows nothing of training.

Each file is compared with PyTorch on the test rows before it has a name (`export/onnx.py`), then
answers them as it will be used.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from potstill.core.extras import installed_version
from potstill.core.files import (
    disk_errors,
    folder_files,
    read_json,
    read_records,
    write_atomic,
    write_json,
)
from potstill.core.stage import Artifact, Context, Draft
from potstill.errors import InputError
from potstill.export import chain
from potstill.export.chain import Allowance
from potstill.export.extractive.card import model_card
from potstill.export.extractive.config import SpanExportConfig
from potstill.export.extractive.measure import measured, recommended
from potstill.export.extractive.plan import TOOLS
from potstill.export.onnx import export_span_model
from potstill.models.size import folder_parameters
from potstill.models.spans.reader import ReaderSettings, SpanReader
from potstill.models.spans.rows import SpanRow, passages, span_rows
from potstill.records import Example


def run(
    config: SpanExportConfig, inputs: Mapping[str, Artifact], draft: Draft, context: Context
) -> None:
    """Write the files, compare each with the PyTorch student, measure it, write the card.

    Errors: ModelError if a file is not the student any more; InputError for too few test rows.
    """
    torch.set_num_threads(context.threads)
    results = read_json(inputs["evaluate"].path("results.json"))
    folder = draft.data / "safetensors"
    _copy_student(inputs["distill"].path("models") / "distilled", folder, results["settings"])
    rows = _rows(config, inputs)
    reader = SpanReader(folder)
    made = export_span_model(
        folder,
        draft.data,
        [(row.question, row.passage) for row in rows],
        allowances={
            "fp32": Allowance(config.fp32_max_kl, config.fp32_min_agreement),
            "int8": Allowance(config.int8_max_kl, config.int8_min_agreement),
        },
        max_tokens=reader.window_tokens,
        seed=context.seed,
        resamples=config.resamples,
        level=config.level,
    )
    del reader
    context.events.progress(1, 2, "files", step="convert")
    files = {kind: draft.data / one["file"] for kind, one in made.items()}
    models = measured(
        config,
        files,
        folder,
        rows,
        folder_parameters(folder) or 0,
        context.seed,
        context.threads,
    )
    context.events.progress(2, 2, "files", step="measure")
    exported = _exported(config, made, models, len(rows))
    write_json(draft.data / "export.json", exported)
    training = inputs["curate"].path("train.jsonl")
    card = model_card(results, exported, sum(1 for _ in read_records(training, Example)))
    write_atomic(draft.data / "README.md", card)
    for name, model in models.items():
        for metric, figure in model["metrics"].items():
            context.events.metric(f"{name}/{metric}", figure["value"])


def _copy_student(source: Path, folder: Path, settings: Mapping[str, Any]) -> None:
    """The student's files, with the threshold that it was evaluated at."""
    shutil.rmtree(folder, ignore_errors=True)  # a killed copy may be half a file
    with disk_errors(folder, "write"):
        for relative in folder_files(source):
            target = folder / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / relative, target)
    own = ReaderSettings.of(folder)
    ReaderSettings(
        own.window_tokens,
        own.window_overlap,
        own.max_answer_tokens,
        settings["no_answer_threshold"],
    ).save(folder)


def _rows(config: SpanExportConfig, inputs: Mapping[str, Artifact]) -> list[SpanRow]:
    file = inputs["curate"].path("test.jsonl")
    examples = sorted(read_records(file, Example), key=lambda example: example.id)
    rows = span_rows(examples, passages(inputs["ingest"], inputs["curate"]), "export")[0][
        : config.max_examples
    ]
    if len(rows) < 2:
        raise InputError(
            f"The test set {file} holds {len(rows)} rows whose answer stands in their passage, and "
            "an interval needs at least two.",
            "Give more documents, or raise the share of rows for the test set.",
        )
    return rows


def _exported(
    config: SpanExportConfig,
    made: Mapping[str, Mapping[str, Any]],
    models: Mapping[str, Mapping[str, Any]],
    rows: int,
) -> dict[str, Any]:
    """export.json, as of every student."""
    hops = [
        {
            **hop,
            "from": "distilled",
            "to": f"onnx-{kind}",
            "file": hop["file"],
            "prompts": hop["pairs"],
            "f1_difference": models[f"onnx-{kind}"]["f1_difference"],
        }
        for kind, hop in made.items()
    ]
    key, why = recommended(models)
    return {
        "task": "spans",
        "models": dict(models),
        "chain": hops,
        "parity": [chain.flat(hop) for hop in hops],
        "left_out": [],
        "notes": [],
        "level": config.level,
        "engines": {tool: installed_version(tool) for tool in (*TOOLS, "transformers", "torch")},
        "recommended": {"model": key, "file": models[key]["file"], "why": why},
        "examples": {"measured": rows, "too_long": 0},
    }
