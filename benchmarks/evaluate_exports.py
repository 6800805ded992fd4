"""Measures whether exported files still are the model: GGUF files against PyTorch in fp32.

    python benchmarks/evaluate_exports.py [--data FILE] [--rows 6]

SmolLM2-135M-Instruct is converted and quantised, from its weights as they are and from balanced
ones, as the export stage does it, and each file's distribution is compared with PyTorch's on the
same token ids: questions about paragraphs of ../shared/data, over the whole vocabulary. Prints one
JSON object a line.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from figures import figure

from potstill.core.machine import usable_cores
from potstill.core.scoring import bootstrap_ratio
from potstill.export.blocks import block_errors
from potstill.export.gguf import CONVERTED, convert, convert_balanced, quantize, tensor_types
from potstill.export.parity import Reader, Row, row_sums, score_files, token_columns
from potstill.models.chat import encode_example
from potstill.models.load import load_model, load_tokenizer, model_folder
from potstill.records import Turn

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "peers"))
import rows as bench_rows  # noqa: E402

BALANCED = ("q8_0", "q4_k_m")
"""Kinds that are also made as the export stage makes them, of balanced weights."""
KINDS = ("f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0")
GOALS: dict[str, tuple[float | None, float | None]] = {"f16": (1e-3, 0.99), "q8_0": (None, 0.98)}
"""Highest KL in nats a token, lowest share of tokens with the same first choice."""
CALIBRATION = 405
"""The question from which on others are read for balancing: of articles that no row is from."""
AGAIN = 10
"""Every so-manieth question is a row, so that many paragraphs are."""


def question_rows(data: Path, tokenizer: Any, count: int, first: int = 0) -> list[Row]:
    """Questions with their paragraphs and answers, as they are encoded everywhere else."""
    questions = [one for some in bench_rows.read_paragraphs(data) for one in some][first::AGAIN]
    made = []
    for one in questions:
        asked = Turn(role="user", content=f"{one.paragraph}\n\n{one.question}")
        turns = (asked, Turn(role="assistant", content=one.answer))
        encoded = encode_example(tokenizer, turns, bench_rows.MAX_TOKENS)
        if not encoded.truncated:
            made.append(
                Row(one.id, encoded.ids, encoded.answer_start, turns[:1], (one.answer,), None)
            )
    return made[:count]


@torch.no_grad()
def round_to_q8_0(model: Any) -> None:
    """Every matrix as Q8_0 keeps it, by the gguf package's own arithmetic."""
    from gguf import GGMLQuantizationType, quants

    for weights in {id(one): one for one in model.parameters() if one.ndim == 2}.values():
        kept = quants.quantize(weights.numpy(), GGMLQuantizationType.Q8_0)
        weights.copy_(torch.from_numpy(quants.dequantize(kept, GGMLQuantizationType.Q8_0)))


def weights_alone(model: Any, rows: list[Row], vocabulary: int) -> None:
    """What the rounding of the weights costs where all else is computed exactly; changes `model`.

    The rest of a Q8_0 file's loss is llama.cpp's, which rounds what goes into each product too.
    """
    before = Reader(model, vocabulary)
    exact = [before.log_probabilities(row.ids, 1) for row in rows]
    round_to_q8_0(model)
    after = Reader(model, vocabulary)
    sums = []
    for row, log_p in zip(rows, exact, strict=True):
        log_q = after.log_probabilities(row.ids, 1)
        targets = torch.tensor(row.ids[1:])
        sums.append(row_sums(token_columns(log_p, log_p, log_q, targets), row.answer_start))
    tokens = [one["tokens"] for one in sums]
    for name, column, unit in (
        ("kl", "kl_student", "nats a token"),
        ("agreement", "agree_student", "share of tokens"),
    ):
        found = bootstrap_ratio([one[column] for one in sums], tokens, 17)
        how = (
            f"PyTorch fp32 with weights rounded as in Q8_0 against without, same {sum(tokens):.0f} "
            f"tokens; 95% interval {found.low:.3g} to {found.high:.3g}"
        )
        figure(f"q8_0_{name}_of_the_weights_alone", found.value, unit, None, True, how)


def main() -> None:
    """Make every kind of file, score all of them on the same rows, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=bench_rows.DATA)
    parser.add_argument("--rows", type=int, default=6)
    options = parser.parse_args()
    threads = usable_cores()
    torch.set_num_threads(threads)
    folder = model_folder(bench_rows.TEACHER)
    tokenizer, model = load_tokenizer(folder), load_model(folder, "float32")
    rows = question_rows(options.data, tokenizer, options.rows)
    with tempfile.TemporaryDirectory() as scratch:
        files = {kind: Path(scratch) / f"model-{kind}.gguf" for kind in KINDS}
        for kind, path in files.items():
            began = time.monotonic()
            if kind in CONVERTED:
                convert(folder, path, tokenizer, "model", kind)
            else:
                quantize(files["f16"], path, kind, threads)
            print(f"{kind}: {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
        source = Path(scratch) / "balanced.gguf"
        calibration = [row.ids for row in question_rows(options.data, tokenizer, 12, CALIBRATION)]
        left = convert_balanced(folder, source, tokenizer, "model", calibration)
        figure("balanced_error_left", left, "share", None, True, "by estimate, other questions")
        for kind in BALANCED:
            files[f"{kind}_balanced"] = Path(scratch) / f"model-{kind}-balanced.gguf"
            quantize(source, files[f"{kind}_balanced"], kind, threads)
        vocabulary = max(tokenizer.get_vocab().values()) + 1
        sums = score_files(
            files, model, None, rows, vocabulary, threads,
            lambda done: print(f"{done} of {len(rows)} rows", file=sys.stderr, flush=True),
        )  # fmt: skip
        for kind, path in files.items():
            made_of = source if kind.endswith("_balanced") else files["f16"]
            worst = block_errors(made_of, path) if kind not in CONVERTED else {}
            report(kind, path, sums[kind], worst)
    weights_alone(model, rows, vocabulary)


def report(kind: str, path: Path, sums: list[dict[str, float]], worst: dict[str, float]) -> None:
    """A file's KL, agreement and size."""
    tokens = [one["tokens"] for one in sums]
    max_kl, min_agreement = GOALS.get(kind.removesuffix("_balanced"), (None, None))
    types = ", ".join(f"{count} {name}" for name, count in tensor_types(path).most_common())
    errors = ", ".join(f"{name} {error:.2%}" for name, error in sorted(worst.items()))
    how = (
        f"against PyTorch fp32 under teacher forcing on the same ids of {len(sums)} rows, "
        f"{sum(tokens):.0f} tokens, whole vocabulary; matrices: {types}"
        + (f"; largest error of a block: {errors}" if errors else "")
    )
    for name, column, unit, goal in (
        ("kl", "kl_student", "nats a token", max_kl),
        ("agreement", "agree_student", "share of tokens", min_agreement),
    ):
        found = bootstrap_ratio([one[column] for one in sums], tokens, 17)
        within = goal is None or (found.value <= goal if name == "kl" else found.value >= goal)
        shown = f"{how}; 95% interval {found.low:.3g} to {found.high:.3g}"
        sign = "<=" if name == "kl" else ">="
        wanted = None if goal is None else f"{sign} {goal:g}"
        figure(f"{kind}_{name}", found.value, unit, wanted, within, shown)
    figure(f"{kind}_disk", path.stat().st_size, "bytes", None, True, "size of the file")


if __name__ == "__main__":
    main()
