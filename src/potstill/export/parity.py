"""Is an exported file still the student? Scores of each GGUF against the PyTorch models.

In: the GGUF files, the PyTorch student and teacher, test rows. Out: per-row sums, figures with
intervals, and the gate that a run must pass. All in nats a token, over the whole vocabulary,
under teacher forcing on the same token ids:

    kl, agreement, perplexity       as evaluate has them: KL(teacher || file), share of positions
                                    where both rank the same token first, exp of the mean
                                    negative log-likelihood of the row's own tokens
    kl_student, agreement_student   KL(PyTorch student || file) and its agreement: what the
                                    conversion and the quantisation cost, and nothing else
    *_answer                        the same over the answer's tokens only

Knows nothing of how the files were made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from potstill.core.scoring import bootstrap, bootstrap_ratio, exact_match, token_f1
from potstill.errors import ModelError
from potstill.models import native
from potstill.records import Turn

Sums = dict[str, float]


@dataclass(frozen=True)
class Row:
    """A test row as token ids, and what is known of it."""

    id: str
    ids: list[int]
    answer_start: int
    turns: tuple[Turn, ...]
    """The conversation before the answer."""
    golds: tuple[str, ...]
    student_answer: str | None
    """What the PyTorch student answered greedily in the evaluate stage, if it did."""

    @property
    def prompt(self) -> list[int]:
        return self.ids[: self.answer_start]


@dataclass(frozen=True)
class Allowance:
    """How far a file may be from the PyTorch student."""

    max_kl: float
    min_agreement: float


def score_files(
    files: Mapping[str, Path],
    student: Any,
    teacher: Any,
    rows: Sequence[Row],
    vocabulary: int,
    threads: int,
    tell: Callable[[int], None] = lambda done: None,
) -> dict[str, list[Sums]]:
    """Sums over the tokens of each row, for each file; the models take turns, row by row.

    vocabulary: ids below this are words; what lies above is padding and is cut off everywhere.
    """
    context = max(len(row.ids) for row in rows)
    scores: dict[str, list[Sums]] = {name: [] for name in files}
    with ExitStack() as stack:
        scorers = {
            name: stack.enter_context(native.scorer(path, context=context, threads=threads))
            for name, path in files.items()
        }
        for name, scorer in scorers.items():
            if scorer.vocabulary < vocabulary:
                raise ModelError(
                    f"{files[name].name} has {scorer.vocabulary} tokens, the student {vocabulary}."
                )
        for done, row in enumerate(rows, 1):
            targets = torch.tensor(row.ids[1:])
            teacher_log = _log_probabilities(teacher, row.ids, vocabulary)
            student_log = _log_probabilities(student, row.ids, vocabulary)
            for name, scorer in scorers.items():
                logits = torch.from_numpy(scorer.logits(row.ids, 1))[:, :vocabulary]
                file_log = torch.log_softmax(logits, dim=-1)
                scores[name].append(
                    row_sums(teacher_log, student_log, file_log, targets, row.answer_start)
                )
            tell(done)
    return scores


def row_sums(
    teacher: Tensor, student: Tensor, file: Tensor, targets: Tensor, answer_start: int
) -> Sums:
    """All sums of one row from log-probabilities [tokens, vocabulary] and target ids [tokens].

    Row r predicts token r + 1, so the answer's rows begin at answer_start - 1.
    """
    columns = {
        "kl": _kl(teacher, file),
        "agree": _agreement(teacher, file),
        "nll": -file.gather(1, targets[:, None])[:, 0].double(),
        "kl_student": _kl(student, file),
        "agree_student": _agreement(student, file),
    }
    sums = {name: float(values.sum()) for name, values in columns.items()}
    answer = {f"{n}_answer": float(v[answer_start - 1 :].sum()) for n, v in columns.items()}
    counts = {
        "tokens": float(len(targets)),
        "answer_tokens": float(len(targets) - answer_start + 1),
    }
    return {**sums, **answer, **counts}


def _log_probabilities(model: Any, ids: Sequence[int], vocabulary: int) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(input_ids=torch.tensor([list(ids[:-1])])).logits
        return torch.log_softmax(logits[0, :, :vocabulary].float(), dim=-1)


def _kl(reference: Tensor, other: Tensor) -> Tensor:
    kl: Tensor = torch.linalg.vecdot(reference.exp(), reference - other)
    return kl.double()


def _agreement(reference: Tensor, other: Tensor) -> Tensor:
    return (reference.argmax(-1) == other.argmax(-1)).double()


def figures(
    sums: Sequence[Sums],
    rows: Sequence[Row],
    answers: Sequence[native.Answer],
    seed: int,
    resamples: int,
    level: float,
) -> dict[str, dict[str, Any]]:
    """Every metric of a file with its bootstrap interval, by the names that results.json has."""

    def ratio(total: str, weight: str, transform: Any = None) -> dict[str, Any]:
        totals, weights = [one[total] for one in sums], [one[weight] for one in sums]
        return bootstrap_ratio(totals, weights, seed, resamples, level, transform).as_dict()

    found = {}
    for end, weight in (("", "tokens"), ("_answer", "answer_tokens")):
        found[f"kl{end}"] = ratio(f"kl{end}", weight)
        found[f"agreement{end}"] = ratio(f"agree{end}", weight)
        found[f"perplexity{end}"] = ratio(f"nll{end}", weight, np.exp)
        found[f"kl_student{end}"] = ratio(f"kl_student{end}", weight)
        found[f"agreement_student{end}"] = ratio(f"agree_student{end}", weight)
    scored = [(one.text, row.golds) for one, row in zip(answers, rows, strict=True) if row.golds]
    for name, score in (("f1", token_f1), ("em", exact_match)):
        if len(scored) >= 2:
            values = [score(text, golds) for text, golds in scored]
            found[name] = bootstrap(values, seed, resamples, level).as_dict()
    same = [
        float(one.text.strip() == row.student_answer.strip())
        for one, row in zip(answers, rows, strict=True)
        if row.student_answer is not None
    ]
    if len(same) >= 2:
        found["greedy_agreement"] = bootstrap(same, seed, resamples, level).as_dict()
    return found


def check_prompts(file: str, rows: Sequence[Row], answers: Sequence[native.Answer]) -> None:
    """Errors: ModelError if llama.cpp prompts the file with other tokens than the student had."""
    for row, one in zip(rows, answers, strict=True):
        if one.prompt_ids != row.prompt:
            pairs = enumerate(zip(row.prompt, one.prompt_ids, strict=False))
            shorter = min(len(row.prompt), len(one.prompt_ids))
            place = next((at for at, (a, b) in pairs if a != b), shorter)
            raise ModelError(
                f"{file} is prompted differently in llama.cpp: test row {row.id} has "
                f"{len(one.prompt_ids)} prompt tokens there and {len(row.prompt)} in training; "
                f"they part at position {place}.",
                "The chat template or the tokenizer did not survive the conversion.",
            )


def check_fidelity(file: str, sums: Sequence[Sums], allowance: Allowance) -> dict[str, float]:
    """Mean KL to the student and agreement with it. Errors: ModelError if outside the allowance."""
    tokens = sum(one["tokens"] for one in sums)
    kl = sum(one["kl_student"] for one in sums) / tokens
    agreement = sum(one["agree_student"] for one in sums) / tokens
    # Written so that a NaN fails.
    if not (kl <= allowance.max_kl and agreement >= allowance.min_agreement):
        raise ModelError(
            f"{file} is not the student any more: over {tokens:.0f} tokens its mean KL to the "
            f"PyTorch student is {kl:.2g} nats (allowed {allowance.max_kl:g}) and they agree on "
            f"{agreement:.1%} of the tokens (needed {allowance.min_agreement:.1%}).",
            "For a quantised file choose one with more bits (q8_0) or raise its bounds in the "
            "recipe; for the F16 file the conversion is at fault.",
        )
    return {"kl_student": kl, "agreement_student": agreement, "tokens": tokens}


def check_stop(file: str, answers: native.Answers) -> None:
    """Errors: ModelError if the student's end token does not end generation in llama.cpp."""
    if not answers.stops:
        raise ModelError(
            f"{file} does not stop at the student's end-of-turn token in llama.cpp.",
            "The student's tokenizer config must name its end-of-turn token as eos_token.",
        )
