"""A teacher read layer by layer against the same teacher in memory: bytes, memory, speed.

    python benchmarks/teaching_streaming.py [--rounds 2] [--tokens 4096]

The teacher is a random Llama of 32 layers and 2 GB in bf16, made on the fly. Each side writes the
same file of hidden states in a process of its own, and sides take turns. Memory is the process's
peak above what it holds after its imports. Prints one JSON object a line; everything else goes to
standard error.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from potstill.core.files import digests_of
from potstill.core.machine import describe, peak_memory_bytes
from potstill.distill import attention
from potstill.distill.batches import Row, RowSet
from potstill.distill.memory import raise_malloc_thresholds, resident_bytes
from potstill.distill.signals import CacheFormat, LiveTeacher, open_cache
from potstill.distill.streaming import StreamedTeacher
from potstill.models.load import load_model
from potstill.models.size import folder_parameters

ROW_TOKENS = 256
VOCABULARY = 32_000


def make(folder: Path) -> None:
    """A random Llama, untied, in bf16, in files of 500 MB."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=1536,
        intermediate_size=4096,
        num_hidden_layers=32,
        num_attention_heads=12,
        num_key_value_heads=12,
        dtype=torch.bfloat16,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder, max_shard_size="500MB")


def side(name: str, model: Path, folder: Path, tokens: int) -> None:
    """Write the file of states, and print seconds and memory."""
    torch.set_num_threads(2)
    raise_malloc_thresholds()
    numbers = torch.Generator().manual_seed(1)
    rows = [
        Row(
            f"row{n}",
            tuple(torch.randint(VOCABULARY, (ROW_TOKENS,), generator=numbers).tolist()),
            1,
        )
        for n in range(tokens // ROW_TOKENS)
    ]
    before = resident_bytes() or 0
    began = time.perf_counter()
    teacher: LiveTeacher
    if name == "streamed":
        teacher = StreamedTeacher(model, torch.bfloat16)
    else:
        teacher = LiveTeacher(load_model(model, torch.bfloat16), torch.bfloat16)
    attention.use(teacher.model)
    loaded, spent = time.perf_counter(), time.process_time()
    data = RowSet.apart(rows, packed=True)
    form = CacheFormat("hidden_bf16")
    open_cache(folder, teacher, "benchmark", data, form, lambda done, of: None)
    line = {
        "loading": loaded - began,
        "seconds": time.perf_counter() - loaded,
        "processor_seconds": time.process_time() - spent,
        "bytes": peak_memory_bytes() - before,
    }
    print(json.dumps(line), flush=True)


def measure(rounds: int = 2, tokens: int = 4096) -> Iterator[dict[str, Any]]:
    """The figures: equal bytes, share of the weights in memory, speed against resident."""
    runs: dict[str, list[dict[str, Any]]] = {"resident": [], "streamed": []}
    digests = []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        model = work / "model"
        _run("--make", str(model))
        weights = 2 * (folder_parameters(model) or 0)
        for number in range(rounds):
            for how, some in runs.items():
                folder = work / f"{how}-{number}"
                arguments = ("--side", how, "--model", str(model), "--folder", str(folder))
                some.append(json.loads(_run(*arguments, "--tokens", str(tokens))))
                print(how, some[-1], file=sys.stderr, flush=True)
                digests.append(digests_of(folder))
    same = all(one == digests[0] for one in digests)
    how = f"{len(digests)} files of hidden states of {tokens} tokens, by SHA-256"
    yield _figure("streamed_bytes_equal", int(same), "of 1", 1, same, how)
    peaks = {how: max(run["bytes"] for run in some) for how, some in runs.items()}
    share = peaks["streamed"] / weights
    how = (
        f"largest of {rounds} processes, above their imports: {peaks['streamed'] / 1e9:.2f} GB "
        f"against {weights / 1e9:.2f} GB of weights; resident {peaks['resident'] / 1e9:.2f} GB"
    )
    yield _figure("streamed_memory", round(share, 3), "of the weights", 0.25, share <= 0.25, how)
    took, spent = (
        {name: statistics.median(run[kind] for run in some) for name, some in runs.items()}
        for kind in ("seconds", "processor_seconds")
    )
    speed = took["resident"] / took["streamed"]
    how = (
        f"medians of {rounds} processes in turn: {took['streamed']:.1f} s, reading included, "
        f"against {took['resident']:.1f} s after loading; processor seconds "
        f"{spent['streamed']:.1f} against {spent['resident']:.1f}"
    )
    yield _figure("streamed_speed", round(speed, 2), "of resident", 0.7, speed >= 0.7, how)


def _figure(name: str, value: Any, unit: str, goal: Any, holds: bool, how: str) -> dict[str, Any]:
    return {
        "figure": name,
        "value": value,
        "unit": unit,
        "goal": goal,
        "holds": holds,
        "how": how,
        "machine": describe(),
    }


def _run(*arguments: str) -> str:
    command = [sys.executable, __file__, *arguments]
    print("+", " ".join(command), file=sys.stderr, flush=True)
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    """All figures; or, in a process of its own, one side."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=("resident", "streamed"), help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        make(options.make)
    elif options.side:
        side(options.side, options.model, options.folder, options.tokens)
    else:
        for line in measure(options.rounds, options.tokens):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
