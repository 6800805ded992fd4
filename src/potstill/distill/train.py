"""Train one student from its start to its best, through kills: set-up, resume, history.

In: a student, the teacher's signal, rows, a plan. Out: the student with its best weights, and the
history of its losses, which is the same whether the training was disturbed or not.
Knows nothing of stages, surgery or where the trained model is kept.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    EarlyStoppingCallback,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations import TensorBoardCallback

from potstill.core.events import Emitter
from potstill.core.files import read_json, write_atomic
from potstill.distill import attention, checkpoints, mixed
from potstill.distill.config import DistillConfig
from potstill.distill.diary import Clock, Diary, Meter, NoBoard, is_curve, open_board
from potstill.distill.flops import machine_flops
from potstill.distill.material import PADDING, Material, pick_optimizer
from potstill.distill.memory import Trimmer, explained
from potstill.distill.objective import Objective
from potstill.distill.outcome import Trained
from potstill.distill.ranks import Ranks
from potstill.distill.rollouts import Kept
from potstill.distill.sharded_trainer import ShardedTrainer, ZeroTrainer
from potstill.distill.sharding import Sharded
from potstill.distill.steps import Steps
from potstill.distill.trainer import DistillTrainer
from potstill.distill.zero import ZeroSharded
from potstill.distill.zero_settings import deepspeed_for
from potstill.models import adapters
from potstill.models.body import body_of, layers_of
from potstill.models.load import quiet

STATE = "trainer_state.json"
MERGED_TOKENS = 256
"""Of the first row, on which a merged adapter is compared with itself before."""


def train_student(
    student: Any,
    material: Material,
    objective: Objective,
    *,
    config: DistillConfig,
    seed: int,
    name: str,
    last_step: int,
    patience: int,
    work: Path,
    tensorboard: Path,
    events: Emitter,
    rollouts: Path | None = None,
    keep: Path | None = None,
    base: str | None = None,
) -> tuple[Any, Trained]:
    """Train `student` (in place) and return it with the weights of its best validation; one that
    was trained in parts (`config.sharding`) comes back as another object.

    last_step: end here, though the learning rate follows the whole plan. patience: validations
    without a better loss before it ends early, 0 for never. work: the folder of its checkpoints;
    a complete one there is gone on from, and the result is the same as without the interruption.
    Of several processes each calls it with the same; the first writes, and all return the same.
    rollouts: the file that is left of the answers that `config.on_policy` asks the student for;
    None: it is trained on the rows alone. keep: where the adapter goes before it is merged, if
    there is one; base: where people find the student as it was, if anywhere.
    Errors: TrainingError for a loss or gradient that is not finite, or a damaged checkpoint;
    ModelError for an adapter that cannot be attached, or says something else when merged.
    """
    torch.manual_seed(seed)  # adapters are drawn by lot
    student = _trainable(student, config)
    if material.training.packed:
        attention.use(student)
    ranks = Ranks.here()
    resumed = ranks.first(lambda: checkpoints.newest(work))
    every = max(1, -(-len(material.plan) // config.validations))  # rounded up
    arguments = TrainingArguments(
        output_dir=str(work),
        max_steps=last_step,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        adam_beta2=config.adam_beta2,
        max_grad_norm=config.clip_norm,
        optim=pick_optimizer(config, cuda=torch.cuda.is_available()),
        eval_strategy="steps",
        eval_steps=every,
        eval_on_start=resumed is None,
        save_strategy="steps",
        save_steps=every,
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        greater_is_better=False,
        restore_callback_states_from_checkpoint=True,
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
        report_to=list(config.trackers) or "none",
        run_name=name,
        log_level="error",
        dataloader_pin_memory=False,
        seed=seed,
    )
    sharded = _in_parts(student, config, arguments.device, ranks)
    even = sharded is not None
    steps = Steps(material.training, material.plan, objective.active, PADDING, ranks, even=even)
    if rollouts is not None:
        steps = mixed.steps_of(student, steps, material, config, seed, work / "rollouts", events)
    if resumed is None and ranks.leads:
        shutil.rmtree(tensorboard, ignore_errors=True)  # of a run killed before its checkpoint
    board = NoBoard()
    if ranks.leads:
        board = open_board(tensorboard, checkpoints.step_of(resumed) if resumed else None)
    threads = torch.get_num_threads()
    meter = Meter(machine_flops(material.dtype, torch.device(arguments.device), threads))
    callbacks: list[TrainerCallback] = [
        Diary(events, name, steps.tokens_after, last_step, meter, board),
        Clock(config.checkpoint_minutes, ranks),
        Trimmer(),
    ]
    if ranks.leads:
        callbacks.insert(0, TensorBoardCallback(board))
    if patience:
        callbacks.append(EarlyStoppingCallback(patience))
    with quiet():
        made: Callable[..., DistillTrainer] = partial(DistillTrainer, student)
        if sharded is not None:
            kind = ZeroTrainer if isinstance(sharded, ZeroSharded) else ShardedTrainer
            made = partial(kind, sharded)
        trainer = made(
            material.signal,
            material.validation_signal,
            objective,
            steps,
            material.validation,
            vocabulary=material.vocabulary,
            dtype=material.dtype,
            config=config,
            arguments=arguments,
            callbacks=callbacks,
            meter=meter,
        )
        with explained(config, trainer.batch_tokens):
            _run(trainer, resumed, ranks)
    board.close()
    if rollouts is not None:
        Kept(work / "rollouts").join(rollouts)
    state = trainer.state
    best = int(state.best_global_step or state.global_step)
    if sharded is not None:
        student = sharded.whole()
    student.eval()
    attention.unuse(student)
    if config.adapter != "none":
        if keep is not None and ranks.leads:
            adapters.save_adapter(student, keep, config.adapter, base)
        student = adapters.merge(student, material.training.rows[0].ids[:MERGED_TOKENS])
    return student, Trained(
        steps=state.global_step,
        tokens=steps.tokens_after[state.global_step - 1],
        stopped_early=state.global_step < last_step,
        best_step=best,
        history=_history(state.log_history),
    )


def _run(trainer: DistillTrainer, resumed: Path | None, ranks: Ranks) -> None:
    """Train from the start or the checkpoint, and end with the best weights."""
    if resumed is None:
        trainer.train()
        return
    with checkpoints.readable(resumed):
        stopped = ranks.first(lambda: _prepare_state(resumed))
        if stopped:  # killed after early stopping had spoken and before its result was kept
            trainer.state = TrainerState.load_from_json(str(resumed / STATE))
    if stopped:
        trainer._load_from_checkpoint(str(trainer.state.best_model_checkpoint or resumed))
    else:
        trainer.train(resume_from_checkpoint=str(resumed))


def _prepare_state(checkpoint: Path) -> bool:
    """Make the state's paths true again if the folder was moved; True if training had stopped."""
    state = read_json(checkpoint / STATE)
    best = state.get("best_global_step")
    folder = checkpoint.parent / f"checkpoint-{best}"
    path = str(folder) if best and checkpoints.is_complete(folder) else None
    if state.get("best_model_checkpoint") != path:
        state["best_model_checkpoint"] = path
        sizes = read_json(checkpoint / checkpoints.MARK)
        text = json.dumps(state, indent=2, sort_keys=True) + "\n"
        (checkpoint / checkpoints.MARK).unlink()
        write_atomic(checkpoint / STATE, text)
        sizes[STATE] = len(text.encode())
        write_atomic(checkpoint / checkpoints.MARK, json.dumps(sizes))
    control = state.get("stateful_callbacks", {}).get("TrainerControl", {}).get("args", {})
    return bool(control.get("should_training_stop")) and state["global_step"] < state["max_steps"]


def _in_parts(
    student: Any, config: DistillConfig, device: torch.device, ranks: Ranks
) -> Sharded | ZeroSharded | None:
    """The student in parts over several processes, if that is wanted."""
    if ranks.count == 1:
        return None
    if (settings := deepspeed_for(config)) is not None:
        return ZeroSharded(student.to(device), ranks, settings)
    return Sharded(student.to(device), ranks) if config.sharding == "fsdp" else None


def _trainable(student: Any, config: DistillConfig) -> Any:
    """Master weights in fp32, the chosen ones taking gradients."""
    adapters.as_base(student, config.adapter, remember=config.keep_adapter).train()
    student.config.dtype = torch.float32
    for parameter in student.parameters():
        parameter.requires_grad_(parameter.is_floating_point())  # 4-bit weights take no gradient
    embeddings = student.get_input_embeddings()
    # Where padding is EOS, torch would keep the gradient from the embedding of EOS itself.
    # Padding needs no such care here: no real token ever sees it.
    embeddings.padding_idx = None
    if config.gradient_checkpointing:
        # transformers 5.23 renamed it.
        newer = getattr(student, "activation_checkpointing_enable", None)
        (newer or student.gradient_checkpointing_enable)({"use_reentrant": False})
    if config.compile:
        _compile(student)
    if config.freeze_embeddings:
        embeddings.requires_grad_(False)
        student.get_output_embeddings().requires_grad_(False)
    if config.adapter == "none":
        return student
    return adapters.attach(student, config.adapter, config.lora)


def _compile(student: Any) -> None:
    """Compile what is element-wise or a product in each layer; attention has shapes that change."""
    for layer in layers_of(body_of(student)):
        for name, part in layer.named_children():
            if name not in ("self_attn", "attn"):
                part.compile(dynamic=True)


def _history(log: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, float]]]:
    """The Trainer's log as two tables; times and throughput are left to the events."""
    steps, validation = [], []
    for entry in log:
        if "loss" in entry:
            row = {"step": entry["step"], "tokens": entry["tokens"]}
            steps.append(row | {name: entry[name] for name in sorted(entry) if is_curve(name)})
        elif "eval_loss" in entry:
            row = {"step": entry["step"], "tokens": entry["tokens"]}
            # Sorted: a state that was read back from a checkpoint has its names in that order.
            names = sorted(name for name in entry if name.startswith("eval_"))
            row |= {name.removeprefix("eval_"): entry[name] for name in names}
            validation.append(row)
    return {"steps": steps, "validation": validation}
