"""How many of a teacher's answers stay when only words go? Gemma 3 270M with fewer tokens.

    POTSTILL_ACCEPT_TERMS=gemma python benchmarks/teaching_words.py [--data FILE] [--work FOLDER]

Two thirds of that model's weights are its vocabulary. It is corrected on the training rows of
`teaching.py`; students keep so many of its tokens that they have 75% and 50% of its parameters.
Test rows are about other articles, so the words that they need are not known to the cut. Nothing is
trained after it. What was made stays in the work folder. Prints one JSON object a line, all else
goes to standard error.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from figures import figure
from teaching import GEMMA, Bench
from teaching_arm import ANSWER_TOKENS, THREADS, held_of
from teaching_arms import CORRECTION
from teaching_table import share

from potstill.core.files import read_json, write_json
from potstill.distill import Distiller
from potstill.evaluate.scan import ScanSettings, scan
from potstill.models.cache import cache_folder
from potstill.models.load import load_model, load_tokenizer
from potstill.models.packages import check_terms, pinned
from potstill.models.surgery import parameters_of
from potstill.models.trimming import trim_vocabulary

sys.path.insert(0, str(Path(__file__).parent / "peers"))
import rows as bench_rows

GOALS = {0.75: 0.9, 0.5: 0.8}
"""Share of the teacher's parameters -> share of its answer F1."""


def corrected(bench: Bench, work: Path) -> Path:
    """The teacher's folder, trained on the answers of the training rows, once."""
    made = work / "teacher"
    if not (made / "done").exists():
        teacher = f"pypi:{GEMMA}"
        training = Distiller(teacher, teacher, output=made, seed=0, **CORRECTION)
        training.train(bench.training, bench.validation)
        (made / "done").touch()
    return made / "model"


def cut(teacher: Path, ratio: float, rows: Sequence[Mapping[str, str]], work: Path) -> Path:
    """The teacher with so few tokens that it has that share of its parameters."""
    tokenizer, model = load_tokenizer(str(teacher)), load_model(str(teacher), "auto")
    whole, width = parameters_of(model), model.get_input_embeddings().weight.shape[1]
    tokens = len(model.get_input_embeddings().weight) - int((1 - ratio) * whole / width) - 1
    texts = [held.encoded.ids for held in held_of(rows, tokenizer)]
    folder = work / f"words-{ratio:g}"
    trim_vocabulary(str(teacher), texts, tokens, folder)
    return folder


def scored(model: Path, rows: Sequence[Mapping[str, str]], work: Path) -> dict[str, Any]:
    """Its answers to the rows, once."""
    done = work / f"{model.parent.name}-{model.name}.json"
    if not done.exists():
        print(f"+ answers of {model.name}", file=sys.stderr, flush=True)
        tokenizer, loaded = load_tokenizer(str(model)), load_model(str(model))
        states = work / "states"
        states.mkdir(exist_ok=True)
        settings = ScanSettings(states, len(tokenizer), ANSWER_TOKENS, 16, 256)
        said = scan(model.name, loaded, tokenizer, held_of(rows, tokenizer), None, settings)
        shutil.rmtree(states)
        write_json(
            done,
            {
                "parameters": parameters_of(loaded),
                "tokens": len(tokenizer),
                "f1": [one.scores.answer.f1 for one in said],
                "answers": [one.answer for one in said],
            },
        )
    found: dict[str, Any] = read_json(done)
    return found


def main() -> None:
    """The teacher, and each student against it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=bench_rows.DATA)
    parser.add_argument("--work", type=Path, default=cache_folder() / "benchmarks" / "teaching")
    options = parser.parse_args()
    check_terms(pinned(GEMMA))
    torch.set_num_threads(THREADS)
    bench, work = Bench(options.data, options.work), options.work / "words"
    work.mkdir(parents=True, exist_ok=True)
    paragraphs = [row["paragraph"] for row in bench.test]
    model = corrected(bench, work)
    teacher = scored(model, bench.test, work)
    mean = sum(teacher["f1"]) / len(teacher["f1"])
    how = f"{len(paragraphs)} rows of {len(set(paragraphs))} paragraphs"
    figure("words_teacher_f1", round(mean, 4), "F1", None, True, how)
    for ratio, goal in GOALS.items():
        student = scored(cut(model, ratio, bench.training, work), bench.test, work)
        kept = share([student], [teacher], paragraphs, "f1")
        size = student["parameters"] / teacher["parameters"]
        how = (
            f"answer F1 over the corrected teacher's, {kept.low:.3f} to {kept.high:.3f}; "
            f"{student['tokens']:,} of {teacher['tokens']:,} tokens, {size:.1%} of the parameters"
        )
        figure(f"words_{ratio:.0%}", round(kept.value, 3), "ratio", goal, kept.value >= goal, how)


if __name__ == "__main__":
    main()
