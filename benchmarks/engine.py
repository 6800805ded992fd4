"""Measures the distillation engine against its peers and against what this machine can do.

    python benchmarks/engine.py [--data FILE] [--rounds 3] [--only NAME …]

Peers run in an environment of their own (`peers/`), every side is a process of its own, and sides
take turns. Rows are questions about paragraphs of ../shared/data, eight a step, in the same order
for all. Prints one JSON object a line; everything else goes to standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, get_args

import torch
from figures import figure

from potstill.distill import losses
from potstill.distill.fused import Terms, linear_scores
from potstill.distill.objective import DivergenceName
from potstill.distill.signals import HiddenStates
from potstill.models.output import OutputLayer

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "peers"))
import environment  # noqa: E402
import rows as bench_rows  # noqa: E402

BATCH = 8
PEER_DTYPE = "pure-bf16"
"""The fastest of either peer's here (of fp32, autocast, bf16 weights with and without autocast)."""


KINDS = {
    "random": (1.0, 1.0),
    "large logits": (12.0, 12.0),
    "one-hot teacher": (4.0, 60.0),
    "nearly alike": (1.0, 1.0),
}
"""Inputs of the exactness check: the spread of the student's and of the teacher's logits."""


def output_of(python: str | Path, script: str, *arguments: str) -> list[dict[str, Any]]:
    """Run a script of this folder and read the JSON lines it prints."""
    command = [str(python), str(HERE / script), *arguments]
    print("+", " ".join(command), file=sys.stderr, flush=True)
    if os.getloadavg()[0] > 2.5:
        print("warning: other work is running, times will not compare", file=sys.stderr)
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [json.loads(line) for line in found.splitlines() if line.startswith("{")]


def rate(runs: list[dict[str, Any]]) -> float:
    """Row tokens a second: the median over all measured steps of all rounds."""
    return statistics.median(
        tokens / seconds
        for run in runs
        for tokens, seconds in zip(run["tokens"], run["seconds"], strict=True)
    )


def peak(runs: list[dict[str, Any]]) -> float:
    """Largest memory of any run, in bytes."""
    return max(run["peak_memory_bytes"] for run in runs)


def measure_peers(common: list[str], rounds: int) -> None:
    """Training steps against the usual loop and TRL."""
    python = environment.peers_python()
    step = [*common, "--batch", str(BATCH), "--steps", "2", "--warmup", "1"]
    peer = [*step, "--dtype", PEER_DTYPE]
    sides: dict[str, tuple[Any, ...]] = {
        "all": (sys.executable, "engine_step.py", *step, "--tokens", "all"),
        "all apart": (sys.executable, "engine_step.py", *step, "--tokens", "all", "--apart"),
        "usual": (python, "peers/usual_loop.py", *peer),
        "answer": (sys.executable, "engine_step.py", *step, "--tokens", "answer"),
        "answer apart": (sys.executable, "engine_step.py", *step, "--tokens", "answer", "--apart"),
        "trl": (python, "peers/trl_gkd.py", *peer),
        "trl raised": (python, "peers/trl_gkd.py", *peer, "--malloc", "raised"),
        "trl mixed": (python, "peers/trl_gkd.py", *step, "--dtype", "mixed", "--malloc", "raised"),
    }
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, command in sides.items():
            runs[name] += output_of(*command)
    rates = {name: rate(some) for name, some in runs.items()}
    print({name: round(value, 1) for name, value in rates.items()}, file=sys.stderr)
    for ours, theirs, goal in (
        ("all", "usual", 4.0),
        ("answer", "trl", 3.5),
        ("answer", "trl raised", 2.2),
    ):
        ratio = rates[ours] / rates[theirs]
        alone = rates[f"{ours} apart"] / rates[theirs]
        how = (
            f"medians of {2 * rounds} steps of {BATCH} rows, in turn: {rates[ours]:.0f} against "
            f"{rates[theirs]:.0f} row tokens/s; without shared beginnings {alone:.2f} times; they "
            f"in {PEER_DTYPE}, we with fp32 weights and bf16 products"
        )
        name = f"step_against_{theirs.replace(' ', '_')}"
        figure(name, round(ratio, 2), "times", goal, ratio >= goal, how)
    for theirs, what in (
        ("trl", "in its fastest type: weights, gradients and AdamW in bf16"),
        ("trl mixed", "with fp32 weights and bf16 products, as ours"),
    ):
        share = peak(runs["answer"]) / peak(runs[theirs])
        how = f"{peak(runs['answer']) / 1e9:.2f} against {peak(runs[theirs]) / 1e9:.2f} GB, {what}"
        name = f"memory_against_{theirs.replace(' ', '_')}"
        figure(name, round(share, 3), "ratio", 0.334, share <= 0.334, how)


def measure_utilisation(common: list[str], rounds: int) -> None:
    """Useful operations over what a large bf16 product reaches here."""
    used = []
    for _ in range(rounds):
        arguments = (
            "--pack",
            "4096",
            "--apart",
            "--tokens",
            "all",
            "--steps",
            "3",
            "--warmup",
            "2",
        )
        (run,) = output_of(sys.executable, "engine_step.py", *common, *arguments)
        used += [
            flops / seconds / run["machine_flops"]
            for flops, seconds in zip(run["flops"], run["seconds"], strict=True)
        ]
    value = statistics.median(used)
    how = (
        f"full packs of 4,096 tokens that share nothing, all tokens taught, whole steps with "
        f"optimizer; median of {len(used)}, {min(used):.3f} to {max(used):.3f}"
    )
    figure("model_flop_utilisation", round(value, 3), "ratio", 0.7, value >= 0.7, how)


def measure_loss(rounds: int) -> None:
    """Memory and time of loss and backward at 4,096 tokens and 49,152 words."""
    runs: dict[str, list[dict[str, Any]]] = {"fused": [], "plain": []}
    for _ in range(rounds):
        for side, some in runs.items():
            some += output_of(sys.executable, "engine_loss.py", "--side", side)
    seconds = {
        side: statistics.median(second for run in some for second in run["seconds"])
        for side, some in runs.items()
    }
    memory = {side: max(run["peak_bytes"] for run in some) for side, some in runs.items()}
    share, speed = memory["fused"] / memory["plain"], seconds["plain"] / seconds["fused"]
    how = f"{memory['fused'] / 1e9:.2f} against {memory['plain'] / 1e9:.2f} GB above the inputs"
    figure("loss_memory", round(share, 3), "ratio", 0.25, share <= 0.25, how)
    how = f"{seconds['fused']:.2f} against {seconds['plain']:.2f} s, forward and backward, in turn"
    figure("loss_speed", round(speed, 2), "times", 1.0, speed >= 1.0, how)


def measure_signals(common: list[str], work: Path) -> None:
    """Finished caches against the live teacher: speed, size, and what is learnt."""
    lines = output_of(sys.executable, "engine_signals.py", *common, "--work", str(work / "signals"))
    found = {line["source"]: line for line in lines}
    live = found.pop("live")
    for name, line in found.items():
        pairs = zip(live["seconds"], line["seconds"], strict=True)
        ratio = statistics.median(theirs / ours for theirs, ours in pairs)
        key = name.replace(" ", "_")
        how = f"median of {len(line['seconds'])} steps in turn; {line['bytes_a_token']:.0f} bytes"
        figure(f"cache_speed_{key}", round(ratio, 2), "times", 1.3, ratio >= 1.3, how + " a token")
        apart = line["kl"] / live["kl"] - 1
        limit = 0.005 if name == "hidden_bf16" else 0.05
        how = f"held-out KL {line['kl']:.4f} against {live['kl']:.4f} of the live teacher's student"
        holds = abs(apart) <= limit
        figure(f"cache_kl_{key}", round(apart, 4), "relative", f"within {limit}", holds, how)


def measure_exactness() -> None:
    """The fused loss in fp32 against float64: value and gradients, random and adversarial."""
    make = torch.Generator().manual_seed(0)
    count, width, words = 48, 64, 4096
    worst: dict[str, float] = {}
    for kind, (spread, their_spread) in KINDS.items():
        states = torch.randn(count, width, generator=make, dtype=torch.float64) * spread
        theirs = torch.randn(count, width, generator=make, dtype=torch.float64) * their_spread
        weight = torch.randn(words, width, generator=make, dtype=torch.float64) / width**0.5
        other = torch.randn(words, width, generator=make, dtype=torch.float64) / width**0.5
        if kind == "nearly alike":
            theirs, other = states + 0.1 * theirs, weight + 0.1 * other
        inputs = [one.float().double() for one in (states, weight, theirs, other)]
        for name in get_args(DivergenceName):
            for temperature in (1.0, 2.5):
                error = max(_errors(inputs, name, temperature))
                worst[kind] = max(worst.get(kind, 0.0), error)
    value = max(worst.values())
    how = "worst of value, states' and weight's gradient, seven divergences; " + ", ".join(
        f"{kind} {error:.1e}" for kind, error in worst.items()
    )
    figure("fused_against_float64", value, "relative", 1e-5, value <= 1e-5, how)


def _errors(inputs: list[torch.Tensor], name: str, temperature: float) -> list[float]:
    states, weight, theirs, other = inputs
    count, words = len(states), len(weight)
    terms = Terms(torch.arange(count) % words, torch.ones(count), torch.full((count,), 0.3))
    leaves = [one.clone().requires_grad_() for one in (states, weight)]
    logits = leaves[0] @ leaves[1].T
    divergence = losses.by_name(name)
    value = losses.per_token(divergence, logits, theirs @ other.T, temperature).sum()
    value = value + 0.3 * losses.cross_entropy(logits, terms.targets)
    value.backward()
    ours = [one.float().requires_grad_() for one in (states, weight)]
    scores = linear_scores(
        ours[0],
        OutputLayer(ours[1]),
        HiddenStates(theirs.float(), OutputLayer(other.float())),
        terms,
        vocabulary=words,
        divergence=divergence,
        temperature=temperature,
    )
    scores.loss.backward()
    pairs = [(scores.loss.detach(), value.detach())]
    pairs += [(one.grad, leaf.grad) for one, leaf in zip(ours, leaves, strict=True)]
    return [float((one.double() - other).norm() / other.norm()) for one, other in pairs]


def measure_attention(rounds: int) -> None:
    """Attention within segments against flash attention of each, forward and backward."""
    lines = [output_of(sys.executable, "engine_attention.py") for _ in range(rounds)]
    for found in zip(*lines, strict=True):
        ratio = statistics.median(one["flash"] / one["ours"] for one in found)
        how = f"forward and backward of a layer of SmolLM2-135M, {found[0]['pack']}, in turn"
        name = f"attention_speed_{found[0]['name']}"
        figure(name, round(ratio, 2), "times", 1.0, ratio >= 1.0, how)


def main() -> None:
    """All figures, or those of the named parts."""
    parts = ("exactness", "attention", "loss", "utilisation", "peers", "signals")
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=bench_rows.DATA)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    options = parser.parse_args()
    torch.set_num_threads(2)
    if "exactness" in options.only:
        measure_exactness()
    if "attention" in options.only:
        measure_attention(options.rounds)
    if "loss" in options.only:
        measure_loss(options.rounds)
    if not {"utilisation", "peers", "signals"} & set(options.only):
        return
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        arguments = ("--work", folder, "--data", str(options.data))
        (made,) = output_of(sys.executable, "peers/rows.py", *arguments)
        common = ["--rows", made["rows_file"], "--model", made["model"]]
        common += ["--student", made["student"]]
        if "utilisation" in options.only:
            measure_utilisation(common, options.rounds)
        if "peers" in options.only:
            measure_peers(common, options.rounds)
        if "signals" in options.only:
            measure_signals(common, work)


if __name__ == "__main__":
    main()
