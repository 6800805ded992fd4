"""TRL's GKDTrainer on given answers with the forward KL, measured step by step.

    python benchmarks/peers/trl_gkd.py --rows FILE --model FOLDER --student FOLDER \\
        [--batch 8] [--steps 5] [--warmup 1] [--dtype fp32] [--malloc default] [--threads 2]

Of its settings, those that make it do what Potstill does: no sampling (lmbda 0, no seq_kd), forward
KL (beta 0) at temperature 1, completions only, masked by its own collator; the rows' own ids in
their order. And those that make it faster than its defaults: no gradient checkpointing, no cache
of keys and values, no saving. Prints one JSON object; runs as a process of its own, so that its
peak memory is its own. Knows nothing of Potstill.
"""

from __future__ import annotations

import os
import tempfile
from typing import Any

import measure

MAX_TOKENS = 512


def train(options: measure.Options) -> measure.Clock:
    """The trainer, timed between the ends of its steps."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    class Timer(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            clock.start()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.step()

    torch.set_num_threads(options.threads)
    clock = measure.Clock()
    types = options.precision
    teacher = AutoModelForCausalLM.from_pretrained(options.model, dtype=types.teacher)
    student = AutoModelForCausalLM.from_pretrained(options.student, dtype=types.student)
    teacher.config.use_cache = student.config.use_cache = False
    with tempfile.TemporaryDirectory() as folder:
        trainer = GKDTrainer(
            model=student,
            teacher_model=teacher,
            args=GKDConfig(
                output_dir=folder,
                lmbda=0.0,
                beta=0.0,
                temperature=1.0,
                seq_kd=False,
                max_length=MAX_TOKENS,
                max_steps=len(options.batches),
                per_device_train_batch_size=options.batch,
                gradient_accumulation_steps=1,
                train_sampling_strategy="sequential",
                learning_rate=measure.LEARNING_RATE,
                lr_scheduler_type="constant",
                bf16=types.autocast,
                activation_checkpointing=False,  # TRL's default is True, under its older name
                use_cpu=True,
                dataloader_pin_memory=False,
                include_num_input_tokens_seen="non_padding",
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                seed=0,
            ),
            train_dataset=Dataset.from_list(
                [as_trl(row) for batch in options.batches for row in batch]
            ),
            processing_class=AutoTokenizer.from_pretrained(options.model),
            callbacks=[Timer()],
        )
        trainer.train()
    history = trainer.state.log_history
    clock.losses = [entry["loss"] for entry in history if "loss" in entry]
    seen = int(trainer.state.num_input_tokens_seen)
    tokens = sum(len(row["ids"]) for batch in options.batches for row in batch)
    if seen != tokens:
        raise SystemExit(f"GKDTrainer trained on {seen} tokens, the rows have {tokens}.")
    return clock


def as_trl(row: dict[str, Any]) -> dict[str, Any]:
    """A row as its collator takes it: ids, and where the completion that counts begins."""
    start, length = row["answer_start"], len(row["ids"])
    mask = [0] * start + [1] * (length - start)
    return {"prompt": row["prompt"], "input_ids": row["ids"], "completion_mask": mask}


def main() -> None:
    """Train and print."""
    stdout = measure.claim_stdout()
    options = measure.parse(__doc__)
    clock = train(options)
    measure.write(stdout, "trl_gkd", options, clock)


if __name__ == "__main__":
    main()
