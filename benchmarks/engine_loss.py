"""The loss and its backward pass alone: fused, or by computing logits; a process of its own.

    python benchmarks/engine_loss.py --side fused|plain [--tokens 4096] [--words 49152]

Forward KL over all tokens between hidden states of width 576 and two output layers, with gradients
of the student's states and weight. Products in bf16, softmaxes in fp32 on both sides. Prints the
seconds of each repetition and the peak memory above what the inputs take.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from potstill.distill.fused import Terms, linear_scores
from potstill.distill.memory import give_back, raise_malloc_thresholds, resident_bytes
from potstill.distill.signals import HiddenStates
from potstill.models.output import OutputLayer

sys.path.insert(0, str(Path(__file__).parent / "peers"))
import measure

WIDTH = 576


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", choices=("fused", "plain"), required=True)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--words", type=int, default=49_152)
    parser.add_argument("--repetitions", type=int, default=4)
    options = parser.parse_args()
    raise_malloc_thresholds()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    count, words = options.tokens, options.words
    weight = torch.randn(words, WIDTH).mul_(0.05).requires_grad_()
    other = (weight.detach() + 0.01 * torch.randn(words, WIDTH)).bfloat16()
    states = torch.randn(count, WIDTH).mul_(1.5).requires_grad_()
    theirs = (states.detach() + 0.3 * torch.randn(count, WIDTH)).bfloat16()
    terms = Terms(torch.zeros(count, dtype=torch.int64), torch.ones(count), torch.zeros(count))

    def fused() -> torch.Tensor:
        said = HiddenStates(theirs, OutputLayer(other))
        output = OutputLayer(weight)
        arguments = {"vocabulary": words, "dtype": torch.bfloat16}
        return linear_scores(states, output, said, terms, **arguments).loss

    def plain() -> torch.Tensor:
        logits = states.bfloat16() @ weight.bfloat16().T
        with torch.no_grad():
            teacher = theirs @ other.T
        log_q = F.log_softmax(logits.float(), dim=-1)
        log_p = F.log_softmax(teacher.float(), dim=-1)
        return F.kl_div(log_q, log_p, reduction="sum", log_target=True)

    give_back()  # what was needed to make the inputs
    Path("/proc/self/clear_refs").write_text("5")  # the kernel's peak starts anew
    before = resident_bytes() or 0
    seconds, losses = [], []
    for _ in range(options.repetitions):
        began = time.perf_counter()
        loss = fused() if options.side == "fused" else plain()
        loss.backward()
        seconds.append(time.perf_counter() - began)
        losses.append(float(loss.detach()))
        states.grad = weight.grad = None
    peak = measure.peak_memory_bytes() - before
    line = {"side": options.side, "seconds": seconds[1:], "peak_bytes": peak, "losses": losses}
    print(json.dumps(line))


if __name__ == "__main__":
    main()
