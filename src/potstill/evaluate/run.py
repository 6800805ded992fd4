"""The evaluate stage: every model on the same held-out examples, measured the same way.

In: curate's test.jsonl, distill's model folders, the teacher; where it was corrected, also as it
came (`uncorrected`). Out: results.json (figures with
intervals, paired differences, the machine), predictions.jsonl (each answer of each model),
rejected.jsonl (examples too long for max_tokens). Knows nothing of training or of the report.

One model is in memory at a time, beside the teacher's output layer. What is finished stays in
draft.work, model by model (`bench.py`), and a killed run goes on from there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from potstill.core.files import read_json, write_atomic, write_json, write_records
from potstill.core.stage import Artifact, Context, Draft
from potstill.errors import InputError
from potstill.evaluate.bench import Bench, bench_of
from potstill.evaluate.config import EvaluateConfig
from potstill.evaluate.encode import Encoded
from potstill.evaluate.forward import load_here
from potstill.evaluate.metrics import ExampleScores
from potstill.evaluate.results import (
    Resampling,
    audited,
    compared,
    environment,
    measured,
    prediction,
)
from potstill.evaluate.scan import Held, ScoredAnswer
from potstill.evaluate.sources import Source
from potstill.evaluate.speed import Speed, measure_speed

Scoring = Callable[[Bench, Context], dict[str, list[ScoredAnswer]]]
"""What has every model scored on every example of a bench, here or elsewhere."""


def run(
    config: EvaluateConfig,
    inputs: Mapping[str, Artifact],
    draft: Draft,
    context: Context,
    scoring: Scoring | None = None,
) -> None:
    """Measure every model on every test example that fits. scoring: default `score_here`.

    Errors: InputError for a test set that cannot carry an interval (fewer than two examples,
    no gold answers); ModelError for a model that cannot be measured.
    """
    torch.set_num_threads(context.threads)
    bench = bench_of(config, inputs, draft.work)
    held = bench.held
    write_records(draft.data / "rejected.jsonl", bench.too_long)
    if bench.too_long:
        context.events.warning(
            f"{len(bench.too_long)} of {len(bench.examples)} test examples are longer than "
            f"{bench.limit} tokens and are not evaluated."
        )
    _need_enough(held, inputs["curate"].path("test.jsonl"), bench.limit)
    speeds = _speeds(config, bench.sources, bench.encoded, draft.work, context)
    scored = (scoring or score_here)(bench, context)
    if not any(answer.answer for answer in scored["teacher"]):
        context.events.warning(
            f"Every answer of the teacher to {len(held)} test examples is empty: it ends its turn "
            "at once. Look at its chat template and its end token; its distributions are compared "
            "all the same."
        )
    results = _results(config, bench.sources, held, scored, speeds, context)
    results["contamination"] = audited(
        inputs["curate"].path("train.jsonl"),
        bench.examples,
        [one.id for one in held],
        _scores(scored),
        config.contamination_words,
        Resampling(context.seed, config.resamples, config.level),
    )
    results["examples"] = {"evaluated": len(held), "too_long": len(bench.too_long)}
    write_json(draft.data / "results.json", results)
    lines = [
        json.dumps(prediction(example, name, answers[place]), ensure_ascii=False)
        for place, example in enumerate(held)
        for name, answers in scored.items()
    ]
    write_atomic(draft.data / "predictions.jsonl", "\n".join(lines) + "\n")
    for name, model in results["models"].items():
        for metric, figure in model["metrics"].items():
            context.events.metric(f"{name}/{metric}", figure["value"])


def _need_enough(held: Sequence[Held], test_file: Path, limit: int) -> None:
    if len(held) < 2:
        raise InputError(
            f"The test set {test_file} holds {len(held)} usable example(s) of at most "
            f"{limit} tokens, and an interval needs at least two.",
            "Give more documents, raise the share of rows for the test set, or raise "
            "evaluate.max_tokens.",
        )
    with_gold = sum(1 for example in held if example.gold.answers)
    if with_gold < 2:
        raise InputError(
            f"Of the {len(held)} test examples in {test_file}, {with_gold} have an answer that is "
            "not empty, so answers cannot be scored.",
            "Look at the curate stage's rejected rows and at the teacher's replies.",
        )


def _speeds(
    config: EvaluateConfig,
    sources: Sequence[Source],
    encoded: Encoded,
    work: Path,
    context: Context,
) -> dict[str, Speed]:
    """Timings on the prompt of median length; measured first, while the process is still small."""
    file = work / "speed.json"
    if file.exists():
        return {name: Speed(**value) for name, value in read_json(file).items()}
    held = encoded.held["teacher"]
    order = sorted(range(len(held)), key=lambda place: len(held[place].encoded.prompt))
    median = order[len(order) // 2]
    total = len(sources) * config.speed_rounds
    speeds = measure_speed(
        {source.name: partial(load_here, source.folder, config.dtype) for source in sources},
        {name: some[median].encoded.prompt for name, some in encoded.held.items()},
        config.speed_tokens,
        config.speed_rounds,
        config.speed_parallel,
        lambda done: context.events.progress(done, total, "timings", step="speed"),
    )
    write_json(file, {name: asdict(speed) for name, speed in speeds.items()})
    return speeds


def score_here(bench: Bench, context: Context) -> dict[str, list[ScoredAnswer]]:
    """Every model's scores, one model after the other in this process; finished ones stay."""
    (part,) = bench.parts(1)
    for source in bench.sources:
        if not bench.done(source.name, part):
            tell = partial(_tell, context, len(bench.held), source.name)
            bench.score(source.name, part, tell)
    return bench.scored([part])


def _scores(scored: Mapping[str, Sequence[ScoredAnswer]]) -> dict[str, list[ExampleScores]]:
    return {name: [answer.scores for answer in answers] for name, answers in scored.items()}


def _tell(context: Context, total: int, name: str, done: int) -> None:
    context.events.progress(done, total, "examples", step=name)


def _results(
    config: EvaluateConfig,
    sources: Sequence[Source],
    held: Sequence[Held],
    scored: Mapping[str, Sequence[ScoredAnswer]],
    speeds: Mapping[str, Speed],
    context: Context,
) -> dict[str, Any]:
    """results.json as DESIGN "Measuring" and this file's header give it."""
    scores = _scores(scored)
    resampling = Resampling(context.seed, config.resamples, config.level)
    found = measured([one.gold.kind for one in held], scores, resampling)
    models = {}
    for source in sources:
        speed = speeds[source.name]
        models[source.name] = {
            "parameters": _parameters(source.folder),
            "disk_bytes": source.disk_bytes,
            "reference_disk_bytes": source.reference_bytes,
            "peak_memory_bytes": speed.peak_memory_bytes,
            "tokens_per_second": speed.tokens_per_second,
            "time_to_first_token_s": speed.time_to_first_token_s,
            "load_s": speed.load_s,
            "token_p50_s": speed.token_p50_s,
            "token_p95_s": speed.token_p95_s,
            "parallel_tokens_per_second": dict(speed.parallel),
            "dtype": config.dtype,
            "unfinished_answers": sum(not answer.finished for answer in scored[source.name]),
            "empty_answers": sum(not answer.answer for answer in scored[source.name]),
            **found[source.name],
        }
    return {
        "models": models,
        **compared(scores, resampling),
        "machine": environment(context.threads),
        "settings": {
            "seed": context.seed,
            "level": config.level,
            "resamples": config.resamples,
            "dtype": config.dtype,
            "decoding": config.decoding.model_dump(mode="json"),
        },
    }


def _parameters(folder: Path) -> int:
    """Weights of the model, tied ones once, counted without reading them."""
    configuration = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(
            configuration, trust_remote_code=False
        )
    model.tie_weights()
    return sum(parameter.numel() for parameter in model.parameters())
