"""The distill stage: cut a student from the teacher, distil it, and train what it is compared with.

In: curated rows (and the chunks they come from). Out: three models, `undistilled`, `distilled`
and `finetuned`, the adapter if it is kept, and what was measured on the way. Knows nothing
of how rows were made.

    teacher [--> models/assistant-1, ...] --surgery--> student start
                                         +--> models/undistilled
                                         +--objective of the recipe--> models/distilled
                                         +--cross-entropy on the text alone--> models/finetuned

`finetuned` starts from the same student and sees the same rows in the same order for the same
number of steps, with the same optimizer and schedule; only the teacher is missing. Each part
leaves a mark in `draft.work` when it is done, and is not done again after a kill.
"""

from __future__ import annotations

import dataclasses
import gc
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from potstill.core.files import read_json, read_records, write_json
from potstill.core.stage import Artifact, Context, Draft
from potstill.distill.batches import Row, encode_passages, encode_rows
from potstill.distill.chain import Lessons, through_assistants
from potstill.distill.config import DistillConfig
from potstill.distill.cut import choose_layers, cut_student
from potstill.distill.material import Material, check_there_are_rows, prepare
from potstill.distill.memory import raise_malloc_thresholds
from potstill.distill.objective import Objective
from potstill.distill.opening import open_teacher
from potstill.distill.panel import Panel, resolved
from potstill.distill.rollouts import Rollout, figures
from potstill.distill.train import Trained, train_student
from potstill.models import adapters, refs, surgery
from potstill.models.corrected import corrected
from potstill.models.load import load_tokenizer
from potstill.models.quantised import is_quantised
from potstill.models.save import save_model
from potstill.records import Chunk, Example

DISTILLED = "distilled"
FINETUNED = Objective(kd_weight=0.0, ce_weight=1.0, ce_tokens="all")


def run(
    config: DistillConfig, inputs: Mapping[str, Artifact], draft: Draft, context: Context
) -> None:
    """Run the stage; goes on from whatever a killed run left in the draft."""
    raise_malloc_thresholds()
    config = config.model_copy(update={"on_policy": config.on_policy.below(context.project)})
    torch.set_num_threads(context.threads)
    uncorrected = config.voices[0].teacher
    config = resolved(config, corrected(inputs["correct"], config.teacher))
    tokenizer = load_tokenizer(config.teacher)
    examples = list(read_records(inputs["curate"].path("train.jsonl"), Example))
    rows = encode_rows(examples, tokenizer, config.sequence_tokens)
    if config.passages:
        rows += _passages(inputs["ingest"], examples, tokenizer, config)
    unseen = list(read_records(inputs["curate"].path("validation.jsonl"), Example))
    validation = encode_rows(unseen, tokenizer, config.sequence_tokens)
    check_there_are_rows(rows, validation)
    chunks = read_records(inputs["ingest"].path("chunks.jsonl"), Chunk)
    sources = {chunk.document: chunk.source for chunk in chunks}
    panel = Panel.of(config, tokenizer, rows, validation, sources)
    config, panel, assistants = through_assistants(
        config,
        panel,
        Lessons(tokenizer, rows, validation, examples, context.seed, context.events),
        models=draft.data / "models",
        work=draft.work,
        tensorboard=draft.data / "tensorboard",
    )
    start = uncorrected if config.student.start == "uncorrected" else config.teacher
    teacher = open_teacher(config.teacher, config, rows, context.events)
    if config.adapter != "none":
        adapters.check_targets(teacher.model, config.lora)
    cut = choose_layers(config.student, teacher.model, rows, draft.work, context.events)
    streamed = teacher.streamed
    student = cut_student(start, cut["dropped"], streamed=streamed).to(teacher.device)
    cut["parameters"]["student"] = surgery.parameters_of(student)
    write_json(draft.data / "surgery.json", cut)
    material = prepare(
        config,
        teacher,
        student,
        tokenizer,
        rows,
        validation,
        examples=examples,
        panel=panel,
        digest=refs.digest(refs.parse(config.teacher)),
        seed=context.seed,
        work=draft.work,
        events=context.events,
    )
    if is_quantised(student):
        student = cut_student(config.teacher, cut["dropped"], streamed=streamed)
    save_model(student.to(torch.bfloat16), tokenizer, draft.data / "models" / "undistilled")
    del student, teacher
    gc.collect()
    trained: dict[str, Trained] = {}
    for name, goal in ((DISTILLED, config.objective), ("finetuned", FINETUNED)):
        distilled = trained.get(DISTILLED)
        trained[name] = _train_once(
            name,
            goal,
            config,
            start,
            cut["dropped"],
            streamed,
            material,
            draft,
            context,
            last_step=distilled.steps if distilled else len(material.plan),
            patience=0 if distilled else config.patience,
            rollouts=config.on_policy.used and not distilled,
        )
    _write_results(config, assistants | trained, material, draft)


def _passages(
    ingest: Artifact, examples: Sequence[Example], tokenizer: Any, config: DistillConfig
) -> list[Row]:
    """The chunks that training rows come from; held-out chunks stay unseen."""
    seen = {example.provenance.chunk for example in examples}
    chunks = (c for c in read_records(ingest.path("chunks.jsonl"), Chunk) if c.id in seen)
    return encode_passages(chunks, tokenizer, config.sequence_tokens)


def _train_once(
    name: str,
    objective: Objective,
    config: DistillConfig,
    start: str,
    dropped: Sequence[int],
    streamed: bool,
    material: Material,
    draft: Draft,
    context: Context,
    *,
    last_step: int,
    patience: int,
    rollouts: bool,
) -> Trained:
    """Train and save one model, or read what came of it if that was done before a kill."""
    mark = draft.work / f"{name}.json"
    if mark.exists() and (draft.data / "models" / name).is_dir():
        return Trained(**read_json(mark))
    student = cut_student(start, dropped, streamed=streamed)
    work = draft.work / name
    student, trained = train_student(
        student,
        material,
        objective,
        config=config,
        seed=context.seed,
        name=name,
        last_step=last_step,
        patience=patience,
        work=work,
        tensorboard=draft.data / "tensorboard" / name,
        events=context.events,
        rollouts=draft.data / "rollouts.jsonl" if rollouts else None,
        keep=draft.data / "adapters" / name if config.keep_adapter and name == DISTILLED else None,
    )
    write_json(mark, dataclasses.asdict(trained))
    save_model(student.to(torch.bfloat16), material.tokenizer, draft.data / "models" / name)
    shutil.rmtree(work, ignore_errors=True)  # checkpoints; the mark says that they are not needed
    return trained


def _rollouts(config: DistillConfig, draft: Draft) -> dict[str, float]:
    """How many of the student's own answers there were, how long, and how many were cut."""
    if not config.on_policy.used:
        return {}
    return figures(list(read_records(draft.data / "rollouts.jsonl", Rollout)))


def _write_results(
    config: DistillConfig, trained: Mapping[str, Trained], material: Material, draft: Draft
) -> None:
    write_json(draft.data / "history.json", {name: one.history for name, one in trained.items()})
    write_json(
        draft.data / "training.json",
        {
            "rows": len(material.training.rows),
            "row_tokens": sum(len(row.ids) for row in material.training.rows),
            "computed_row_tokens": sum(material.training.sizes.values()),
            "truncated_rows": sum(row.truncated for row in material.training.rows),
            "validation_rows": len(material.validation.rows),
            "precision": str(material.dtype).removeprefix("torch."),
            "layout": "packed" if material.training.packed else "buckets",
            "signal": material.signal_kind,
            "learning_rate": config.learning_rate,
            "planned_steps": len(material.plan),
            **_rollouts(config, draft),
            "models": {
                name: {
                    "steps": one.steps,
                    "tokens": one.tokens,
                    "stopped_early": one.stopped_early,
                    "best_step": one.best_step,
                }
                for name, one in trained.items()
            },
        },
    )
