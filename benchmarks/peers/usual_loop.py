"""The usual loop: knowledge distillation as it is written by hand, measured step by step.

    python benchmarks/peers/usual_loop.py --rows FILE --model FOLDER --student FOLDER \\
        [--batch 8] [--steps 5] [--warmup 1] [--dtype fp32] [--malloc default] [--threads 2]

Every row is padded to 512 tokens; both models give logits at all positions; the loss is PyTorch's
KL divergence over all of them. Models are those of transformers as they come. Prints one JSON
object; runs as a process of its own, so that its peak memory is its own.
Knows nothing of Potstill.
"""

from __future__ import annotations

from typing import Any

import measure

MAX_TOKENS = 512


def padded(batch: list[dict[str, Any]], padding: int) -> dict[str, Any]:
    """A batch as the models take it: right-padded to 512 tokens, with its mask."""
    import torch

    ids = torch.full((len(batch), MAX_TOKENS), padding, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for line, row in enumerate(batch):
        ids[line, : len(row["ids"])] = torch.tensor(row["ids"])
        mask[line, : len(row["ids"])] = 1
    return {"input_ids": ids, "attention_mask": mask, "use_cache": False}


def train(options: measure.Options) -> measure.Clock:
    """The loop, timed."""
    import torch
    import torch.nn.functional as F
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    types = options.precision
    teacher = AutoModelForCausalLM.from_pretrained(options.model, dtype=types.teacher).eval()
    student = AutoModelForCausalLM.from_pretrained(options.student, dtype=types.student).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=measure.LEARNING_RATE)
    padding = teacher.config.pad_token_id or 0
    clock = measure.Clock()
    clock.start()
    for batch in options.batches:
        inputs = padded(batch, padding)
        with torch.autocast("cpu", torch.bfloat16, enabled=types.autocast):
            with torch.no_grad():
                teacher_logits = teacher(**inputs).logits
            student_logits = student(**inputs).logits
            loss = F.kl_div(
                F.log_softmax(student_logits, dim=-1),
                F.softmax(teacher_logits, dim=-1),
                reduction="batchmean",
            )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        clock.losses.append(loss.item())
        clock.step()
    return clock


def main() -> None:
    """Train and print."""
    stdout = measure.claim_stdout()
    options = measure.parse(__doc__)
    clock = train(options)
    measure.write(stdout, "usual_loop", options, clock)


if __name__ == "__main__":
    main()
