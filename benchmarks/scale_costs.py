"""The cost model against a short measurement on this machine: `make bench NAME=scale_costs`.

    python benchmarks/scale_costs.py [--tokens 1024] [--rounds 3]

In: nothing but the machine; the models are random ones of SmolLM2-135M's shape and of half its
depth. Out: one JSON line a figure: the machine's own rates beside the table's, a training step's
seconds, bytes that autograd keeps. Under two minutes on two idle cores. What it
does not measure is any accelerator: those figures are carried on from documents.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from figures import figure
from transformers import LlamaConfig, LlamaForCausalLM

from potstill.core.machine import usable_cores
from potstill.costs import Cluster, Training, accelerators, bound, published, step_of
from potstill.costs.binding import MEASURED_SHARES
from potstill.costs.decoder import Decoder
from potstill.distill.flops import machine_flops

DOUBLE = 2.0
"""A prediction is taken to hold within this factor: it is for plans, not for races."""


def model_of(one: Decoder) -> Any:
    """A random Llama of that shape."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=one.vocabulary,
            hidden_size=one.hidden,
            intermediate_size=one.intermediate,
            num_hidden_layers=one.layers,
            num_attention_heads=one.heads,
            num_key_value_heads=one.kv_heads,
            head_dim=one.head_dim,
            tie_word_embeddings=one.tied,
        )
    )


def step_seconds(student: Any, teacher: Any, tokens: int, rounds: int) -> float:
    """Median of a step's bodies: the teacher forward, the student forward and backward."""
    ids = torch.randint(0, student.config.vocab_size, (1, tokens))
    taken = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                teacher.model(ids)
            states = student.model(ids).last_hidden_state
        states.float().pow(2).mean().backward()
        taken.append(time.perf_counter() - began)
        student.zero_grad(set_to_none=True)
    return statistics.median(taken[1:])


def kept_bytes(student: Any, tokens: int) -> float:
    """Of a token, what autograd holds of the body but weights and their copies."""
    shapes = {tuple(one.shape) for one in student.parameters()}
    shapes |= {one[::-1] for one in shapes}
    held: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16):
        student.model(torch.zeros(1, tokens, dtype=torch.long))
    own = [one for one in held.values() if tuple(one.shape) not in shapes]
    return sum(one.untyped_storage().nbytes() for one in own) / tokens


def copy_rate() -> float:
    """Bytes a second of copying 256 MB: read and written."""
    source = torch.ones(64 << 20)
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(5):
        began = time.perf_counter()
        target.copy_(source)
        best = max(best, 2 * source.nbytes / (time.perf_counter() - began))
    return best


def disk_rate() -> float:
    """Bytes a second of writing 256 MB and having them on the disk."""
    content = bytes(256 << 20)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        with (Path(folder) / "file").open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        return len(content) / (time.perf_counter() - began)


def near(name: str, measured: float, foreseen: float, unit: str, how: str) -> None:
    """One figure: what was foreseen over what was measured."""
    ratio = foreseen / measured
    text = f"{how}; foreseen {foreseen:.4g}, measured {measured:.4g} {unit}"
    goal = f"1/{DOUBLE:g} to {DOUBLE:g}"
    figure(name, round(ratio, 3), "foreseen/measured", goal, 1 / DOUBLE <= ratio <= DOUBLE, text)


def main() -> None:
    """All figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(usable_cores())
    table = accelerators()["cpu"]
    rate = machine_flops(torch.bfloat16, torch.device("cpu"), usable_cores())
    near("the processor's products", rate, table.flops, "FLOP/s", "a square product of 4,096, bf16")
    near("its memory", copy_rate(), table.bandwidth, "B/s", "copying 256 MB")
    near("its disk", disk_rate(), table.disk, "B/s", "256 MB written and synchronised")

    small = published()["SmolLM2-135M"]
    half = replace(small, layers=small.layers // 2)
    here = Cluster(replace(table, flops=rate))
    one = Training(
        half,
        small,
        "live",
        micro_tokens=asked.tokens,
        step_tokens=asked.tokens,
        seen=asked.tokens / 2,
        scored=0.0,
    )
    student, teacher = model_of(half), model_of(small)
    measured = step_seconds(student, teacher, asked.tokens, asked.rounds)
    share = MEASURED_SHARES["compute"]
    how = f"bodies of {asked.tokens} tokens, {share} of the products' rate; no loss, no optimizer"
    near("a training step", measured, bound([step_of(one, here)], here).seconds, "s", how)
    kept = kept_bytes(student, asked.tokens)
    near("what a token keeps", kept, half.kept_bytes(), "bytes", "counted by autograd's hooks")


if __name__ == "__main__":
    main()
