"""The export stage: the student as safetensors and GGUF, each file proven before the run is done.

In: distill's student, curate's test rows, the teacher, evaluate's figures and answers. Out:
safetensors/, student-<kind>.gguf, Modelfile, SERVING.md, export.json, README.md. Knows nothing of
training.

A file that is finished in the draft is not made again after a kill; a file that fails its
comparison with the PyTorch student is deleted and the run fails, or, where it is a candidate that
lost more than it may, goes on without it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from potstill.core.files import (
    disk_errors,
    folder_files,
    read_json,
    read_records,
    write_atomic,
    write_json,
)
from potstill.core.stage import Artifact, Context, Draft
from potstill.errors import InputError, ModelError, PotstillError
from potstill.export import chain, gguf
from potstill.export.card import model_card
from potstill.export.chain import Allowance
from potstill.export.choose import recommended
from potstill.export.config import ExportConfig
from potstill.export.measure import measured
from potstill.export.parity import Row
from potstill.export.serving import modelfile, serving
from potstill.models.chat import encode_example
from potstill.models.corrected import corrected
from potstill.models.load import load_tokenizer
from potstill.models.refs import parse
from potstill.models.size import longest_text
from potstill.records import Example

NAME, BALANCE = "student", "balance.json"
# The plain form of potstill/models/chat.py as a template, for a student that has none: without
# it llama.cpp would prompt with a form of its own that the student never saw.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}"
    "\n\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)


def run(
    config: ExportConfig, inputs: Mapping[str, Artifact], draft: Draft, context: Context
) -> None:
    """Make the files, compare each with the PyTorch student, measure it, write the card.

    Errors: ModelError if a file is not the student any more; InputError for too few test rows.
    """
    torch.set_num_threads(context.threads)
    results = read_json(inputs["evaluate"].path("results.json"))
    first = chain.student_hop(
        results, Allowance(config.student_max_kl, None, config.student_max_f1_loss)
    )
    folder = draft.data / "safetensors"
    _copy_student(inputs["distill"].path("models") / "distilled", folder)
    tokenizer = load_tokenizer(folder)
    source = _balanced(config, inputs, folder, tokenizer, draft, context)
    files = _make_files(config, folder, tokenizer, source, draft.data, context)
    rows, too_long = _rows(config, inputs, folder, tokenizer)
    if too_long:
        context.events.warning(
            f"{too_long} test rows are longer than export.max_tokens and are not measured."
        )
    try:
        teacher = corrected(inputs["correct"], config.teacher)
        adapter = _kept_adapter(inputs["distill"])
        exported = measured(
            config, files, source, folder, teacher, tokenizer, rows, context, adapter
        )
    except PotstillError:
        for path in (*files.values(), *([source] if source is not None else [])):
            path.unlink(missing_ok=True)  # else a repeated run would find them finished
        raise
    exported["chain"].insert(0, first)
    exported["parity"] = [chain.flat(hop) for hop in exported["chain"]]
    for one in exported["left_out"]:
        files.pop(one["kind"]).unlink()
        exported["notes"].append(f"{one['file']} is left out: {one['why']}")
    if source is not None:
        left = exported["balance"] = read_json(draft.work / BALANCE)
        exported["notes"].append(
            f"Quantised files are made of balanced weights: {left['error_left']:.0%} of the "
            f"rounding error is left by estimate ({left['tokens']:,} tokens of training rows)."
        )
    exported["examples"] = {"measured": len(rows), "too_long": too_long}
    for kind, path in files.items():
        note = gguf.fallback_note(path, kind) if kind not in gguf.CONVERTED else None
        if note:
            exported["notes"].append(note)
    _write_words(config, exported, results, inputs, tokenizer, folder, draft.data)


def _write_words(
    config: ExportConfig,
    exported: dict[str, Any],
    results: Mapping[str, Any],
    inputs: Mapping[str, Artifact],
    tokenizer: Any,
    folder: Path,
    data: Path,
) -> None:
    """What stands beside the files: figures, card, and how to serve them."""
    key, why = recommended(exported["models"])
    best = exported["models"][key]["file"]
    exported["recommended"] = {"model": key, "file": best, "why": why}
    window = longest_text(folder)
    write_atomic(data / "Modelfile", modelfile(tokenizer, best, window))
    write_atomic(data / "SERVING.md", serving(best, window))
    write_json(data / "export.json", exported)
    card = model_card(
        parse(config.teacher),
        f"{parse(config.teacher).name.split('/')[-1] or 'Potstill'} student",
        results,
        exported,
        sum(1 for _ in read_records(inputs["curate"].path("train.jsonl"), Example)),
    )
    write_atomic(data / "README.md", card)


def _kept_adapter(distill: Artifact) -> tuple[Path, Path] | None:
    """The base and the adapter that was merged into the student, if it was kept."""
    base, adapter = distill.path("models/undistilled"), distill.path("adapters/distilled")
    return (base, adapter) if base.is_dir() and adapter.is_dir() else None


def _copy_student(source: Path, folder: Path) -> None:
    if not (source / "config.json").is_file():
        raise ModelError(
            f"The distill stage left no student: {source} has no config.json.",
            "Run `potstill verify` on the run, and distill again if it is damaged.",
        )
    shutil.rmtree(folder, ignore_errors=True)  # a killed copy may be half a file
    with disk_errors(folder, "write"):
        for relative in folder_files(source.resolve()):
            target = folder / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / relative, target)
    if load_tokenizer(folder).chat_template is None:
        write_atomic(folder / "chat_template.jinja", PLAIN_TEMPLATE)


def _balanced(
    config: ExportConfig,
    inputs: Mapping[str, Artifact],
    folder: Path,
    tokenizer: Any,
    draft: Draft,
    context: Context,
) -> Path | None:
    """The F16 file of the balanced student, of which files are quantised; None: the student's own
    is."""
    if not config.balance or all(kind in gguf.CONVERTED for kind in config.kinds):
        return None
    out, said = draft.work / "balanced-f16.gguf", draft.work / BALANCE
    if out.exists() and said.exists():
        return out
    rows = _training_rows(config, inputs, tokenizer)
    left = gguf.convert_balanced(
        folder,
        out,
        tokenizer,
        NAME,
        rows,
        lambda done: context.events.progress(done, len(rows), "rows", step="balance"),
    )
    if left is None:
        return None
    write_json(said, {"error_left": round(left, 4), "tokens": sum(map(len, rows))})
    return out


def _training_rows(
    config: ExportConfig, inputs: Mapping[str, Artifact], tokenizer: Any
) -> list[list[int]]:
    """The first training rows, of as many tokens as are to be read."""
    found: list[list[int]] = []
    for example in read_records(inputs["curate"].path("train.jsonl"), Example):
        found.append(encode_example(tokenizer, example.turns, config.max_tokens).ids)
        if sum(map(len, found)) >= config.balance_tokens:
            break
    return found


def _make_files(
    config: ExportConfig,
    folder: Path,
    tokenizer: Any,
    source: Path | None,
    data: Path,
    context: Context,
) -> dict[str, Path]:
    """Kind -> GGUF file. source: what others are quantised from; None: the F16 file, which is made
    first."""
    files = {kind: data / f"{NAME}-{kind}.gguf" for kind in config.kinds}
    for done, (kind, path) in enumerate(files.items()):
        context.events.progress(done, len(files), "files", step="convert")
        if path.exists():
            continue
        if kind in gguf.CONVERTED:
            gguf.convert(folder, path, tokenizer, NAME, kind)
        else:
            gguf.quantize(source or files["f16"], path, kind, context.threads)
    context.events.progress(len(files), len(files), "files", step="convert")
    return files


def _rows(
    config: ExportConfig, inputs: Mapping[str, Artifact], folder: Path, tokenizer: Any
) -> tuple[list[Row], int]:
    """The test rows that fit, in the order of their ids, and how many did not fit."""
    test_file = inputs["curate"].path("test.jsonl")
    examples = sorted(read_records(test_file, Example), key=lambda example: example.id)
    room = max(config.answer_tokens, config.speed_tokens)
    limit = min(config.max_tokens, (longest_text(folder) or config.max_tokens) - room)
    known = _student_answers(inputs["evaluate"])
    rows, too_long = [], 0
    for example in examples[: config.max_examples]:
        encoded = encode_example(tokenizer, example.turns, limit)
        if encoded.truncated:
            too_long += 1
            continue
        golds = example.answers or (example.turns[-1].content,)
        rows.append(
            Row(
                id=example.id,
                ids=encoded.ids,
                answer_start=encoded.answer_start,
                turns=example.turns[:-1],
                golds=tuple(gold for gold in golds if gold.strip()),
                student_answer=known.get(example.id),
            )
        )
    if len(rows) < 2:
        raise InputError(
            f"The test set {test_file} holds {len(rows)} usable rows of at most {limit} tokens, "
            "and an interval needs at least two.",
            "Give more documents, raise the share of rows for the test set, or raise "
            "export.max_tokens.",
        )
    return rows, too_long


def _student_answers(evaluate: Artifact) -> dict[str, str]:
    """Row id -> what the distilled student answered in PyTorch, where it came to an end.

    None that were drawn by lot: files answer greedily, and the two cannot be compared.
    """
    predictions = evaluate.path("predictions.jsonl")
    settings = read_json(evaluate.path("results.json")).get("settings", {})
    if not predictions.exists() or settings.get("decoding", {}).get("temperature", 0) > 0:
        return {}
    lines = [json.loads(line) for line in predictions.read_text("utf-8").splitlines() if line]
    return {line["id"]: line["answer"] for line in lines if _whole(line)}


def _whole(line: Mapping[str, Any]) -> bool:
    # An answer that evaluate cut short is no fair thing to compare a whole one with.
    return line["model"] == "distilled" and bool(line.get("finished", True))
