"""Measures how fast answers are written for evaluation, against one `generate` a row.

    python benchmarks/evaluate_speed.py [--data FILE] [--rows 40]

The model is SmolLM2-135M-Instruct in float32; rows are questions on paragraphs of ../shared/data.
Three sides in turn, in one process: transformers' `generate` a row at a time; Potstill's evaluation
(shared beginnings read once, answers written in batches); llama.cpp on the package's GGUF file,
several requests at once. All greedy, of the same prompts and the same length. Also whether an
evaluation that is done twice gives the same digits, and what the fidelity figures cost beside it.
Prints one JSON object a line; everything else goes to standard error.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import torch
from answering import ANSWER_TOKENS, PARALLEL, through_llamacpp
from figures import figure

from potstill.core.machine import usable_cores
from potstill.evaluate.answer_scores import Gold
from potstill.evaluate.config import EvaluateConfig
from potstill.evaluate.outside import answer_prompts
from potstill.evaluate.scan import Held, ScanSettings, scan
from potstill.models.chat import encode_example
from potstill.models.load import load_model, load_tokenizer, model_folder
from potstill.models.sampling import end_tokens
from potstill.records import Turn

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "peers"))
import rows as bench_rows  # noqa: E402

BATCH = 16
ROUNDS = 2
"""Each side's times; the better one counts."""


def held_rows(data: Path, tokenizer: Any, count: int) -> tuple[list[Held], list[str]]:
    """The first questions of the file that fit, as evaluation has them and as they are asked."""
    held, texts = [], []
    for paragraph in bench_rows.read_paragraphs(data):
        for one in paragraph:
            asked = Turn(role="user", content=f"{one.paragraph}\n\n{one.question}")
            said = [asked, Turn(role="assistant", content=one.answer)]
            encoded = encode_example(tokenizer, said, bench_rows.MAX_TOKENS)
            if not encoded.truncated and len(held) < count:
                held.append(Held(one.id, encoded, Gold(one.id, (one.answer,))))
                texts.append(asked.content)
    return held, texts


@torch.inference_mode()
def one_by_one(
    model: Any, prompts: Sequence[Sequence[int]], ends: frozenset[int]
) -> list[list[int]]:
    """The usual way: `generate` for each row."""
    found = []
    for prompt in prompts:
        ids = torch.tensor([list(prompt)])
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=ANSWER_TOKENS,
            eos_token_id=sorted(ends),
            pad_token_id=min(ends),
        )
        answer = made[0, ids.shape[1] :].tolist()
        found.append([one for one in answer if one not in ends])
    return found


def batched(model: Any, tokenizer: Any, held: list[Held]) -> list[list[int]]:
    """Evaluation's way, without its other figures."""
    config = EvaluateConfig(answer_tokens=ANSWER_TOKENS, batch_size=BATCH)
    prompts, names = [row.encoded.prompt for row in held], [row.id for row in held]
    return [one.ids for one in answer_prompts(model, tokenizer, prompts, names, config)]


def slots(prompts: Sequence[str]) -> None:
    """Seconds by how many requests run at once, and by how long their replies may be."""
    for parallel, tokens in product((1, 4, 8), (1, ANSWER_TOKENS, 96)):
        seconds, replies = through_llamacpp(bench_rows.TEACHER, prompts, tokens, parallel)
        written = sum(one.completion_tokens for one in replies)
        how = f"{len(prompts)} prompts, {written} new tokens, up to {tokens} each"
        figure(f"llama.cpp, {parallel} at once, {tokens} tokens", seconds, "s", None, True, how)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=bench_rows.DATA, help="a SQuAD v1.1 file")
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--slots", action="store_true", help="only llama.cpp, by requests at once")
    options = parser.parse_args()
    torch.set_num_threads(usable_cores())
    folder = model_folder(bench_rows.TEACHER)
    tokenizer, model = load_tokenizer(folder), load_model(folder)
    held, texts = held_rows(options.data, tokenizer, options.rows)
    if options.slots:
        slots(texts)
        return 0
    ends, words = end_tokens(model, tokenizer), len(tokenizer)
    prompts = [row.encoded.prompt for row in held]
    one_by_one(model, prompts[:1], ends)
    seconds: dict[str, list[float]] = {"one": [], "batch": [], "llama": []}
    for _ in range(ROUNDS):
        began = time.perf_counter()
        usual = one_by_one(model, prompts, ends)
        seconds["one"].append(time.perf_counter() - began)
        began = time.perf_counter()
        ours = batched(model, tokenizer, held)
        seconds["batch"].append(time.perf_counter() - began)
        took, replies = through_llamacpp(bench_rows.TEACHER, texts)
        seconds["llama"].append(took)
    best = {name: min(some) for name, some in seconds.items()}
    rows = len(held)
    longest = max(len(row.encoded.prompt) for row in held)
    how = (
        f"{rows} questions, prompts of up to {longest} tokens, "
        f"{ANSWER_TOKENS} new tokens at most, greedy, best of {ROUNDS} turns; "
        f"{rows / best['one']:.2f} rows a second one by one, {rows / best['batch']:.2f} batched"
    )
    ratio = best["one"] / best["batch"]
    figure("batched answers against one generate a row", ratio, "times", 3, ratio >= 3, how)
    same = sum(a == b for a, b in zip(usual, ours, strict=True)) / rows
    figure("of them the same, token for token", 100 * same, "%", 100, same == 1, how)
    ratio = best["one"] / best["llama"]
    said = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in usual]
    alike = sum(a == b.text.strip() for a, b in zip(said, replies, strict=True)) / rows
    how = (
        f"the package's GGUF file, {PARALLEL} requests at once; {100 * alike:.0f}% of the answers "
        "are those of float32, the file's weights being quantised"
    )
    figure("through llama.cpp against one generate a row", ratio, "times", 4, ratio >= 4, how)
    with tempfile.TemporaryDirectory() as states:
        settings = ScanSettings(Path(states), words, ANSWER_TOKENS, BATCH, 256)
        began = time.perf_counter()
        first = scan("teacher", model, tokenizer, held, None, settings)
        whole = time.perf_counter() - began
        again = scan("teacher", model, tokenizer, held, None, settings)
    equal = [asdict(one) for one in first] == [asdict(one) for one in again]
    how = f"{rows} rows: every answer, every score and every sum of every row, compared exactly"
    figure("an evaluation done twice", "equal" if equal else "differs", "", "equal", equal, how)
    how = "answers and all fidelity figures of each token, against the answers alone; no goal"
    figure("cost of all figures", whole / best["batch"], "times", None, True, how)
    return 0


if __name__ == "__main__":
    sys.exit(main())
