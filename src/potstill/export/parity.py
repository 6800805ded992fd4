"""Is an exported file still the student? Scores of each GGUF against the PyTorch models.

In: the GGUF files, the PyTorch student and teacher, test rows. Out: per-row sums, figures with
intervals, checks of prompts and stopping; `chain.py` judges the figures. All in nats a token,
over the whole vocabulary, under teacher forcing on the same token ids:

    kl, agreement, perplexity       as evaluate has them: KL(teacher || file), share of positions
                                    where both rank the same token first, exp of the mean
                                    negative log-likelihood of the row's own tokens
    kl_student, agreement_student   KL(PyTorch student || file) and its agreement: what the
                                    conversion and the quantisation cost, and nothing else
    *_answer                        the same over the answer's tokens only

Knows nothing of how the files were made.
"""

from __future__ import annotations

import math
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
from potstill.models.prefixes import common_prefix
from potstill.records import Turn

Sums = dict[str, float]
COLUMNS = ("kl", "agree", "nll", "kl_student", "agree_student")


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

    teacher None: it has another vocabulary, and what is compared with it is not a number.
    vocabulary: ids below this are words; what lies above is padding and is cut off everywhere.
    Rows are read in the order of their ids, and a beginning that a row shares with the one
    before (the passage of several questions) is read and scored once.
    """
    context = max(len(row.ids) for row in rows)
    measured = [student] if teacher is None else [teacher, student]
    readers = [Reader(model, vocabulary) for model in measured]
    order = sorted(range(len(rows)), key=lambda place: (rows[place].ids, place))
    scores: dict[str, dict[int, Sums]] = {name: {} for name in files}
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
        before: list[int] = []
        columns = {name: torch.zeros(len(COLUMNS), 0, dtype=torch.float64) for name in files}
        for done, place in enumerate(order, 1):
            row = rows[place]
            start = max(1, min(common_prefix(before, row.ids), len(row.ids) - 1))
            targets = torch.tensor(row.ids[start:])
            references = [reader.log_probabilities(row.ids, start) for reader in readers]
            for name, scorer in scorers.items():
                logits = torch.from_numpy(scorer.logits(row.ids, start))[:, :vocabulary]
                file_log = torch.log_softmax(logits, dim=-1)
                new = token_columns(references[0], references[-1], file_log, targets)
                if teacher is None:
                    new[:2] = torch.nan
                columns[name] = torch.cat([columns[name][:, : start - 1], new], dim=1)
                scores[name][place] = row_sums(columns[name], row.answer_start)
            before = row.ids
            tell(done)
    return {name: [found[place] for place in range(len(rows))] for name, found in scores.items()}


class Reader:
    """A PyTorch model that reads rows one after the other and keeps what they share."""

    def __init__(self, model: Any, vocabulary: int) -> None:
        self._model = model
        self._vocabulary = vocabulary
        self._before: list[int] = []
        self._cache: Any = None

    def log_probabilities(self, ids: Sequence[int], start: int) -> Tensor:
        """[len(ids) - start, vocabulary]: what predicts each token from `start` (>= 1) on."""
        keep = min(common_prefix(self._before, ids), start - 1)
        if keep and self._can_be_cut():
            if surplus := len(self._before) - keep:
                self._cache.crop(-surplus)
        else:
            keep, self._cache = 0, None
        with torch.no_grad():
            output = self._model(
                input_ids=torch.tensor([list(ids[keep:-1])]),
                past_key_values=self._cache,
                use_cache=True,
            )
            logits = output.logits[0, start - 1 - keep :, : self._vocabulary]
            found: Tensor = torch.log_softmax(logits.float(), dim=-1)
        self._before, self._cache = list(ids[:-1]), output.past_key_values
        return found

    def _can_be_cut(self) -> bool:
        """Only plain attention forgets its last tokens; windows and recurrent states do not."""
        layers = getattr(self._cache, "layers", ())
        return bool(layers) and all(type(layer).__name__ == "DynamicLayer" for layer in layers)


def token_columns(teacher: Tensor, student: Tensor, file: Tensor, targets: Tensor) -> Tensor:
    """`COLUMNS` of each token, [5, tokens] float64.

    teacher, student, file: log-probabilities [tokens, vocabulary]; targets: token ids [tokens].
    """
    nll = -file.gather(1, targets[:, None])[:, 0].double()
    found = [_kl(teacher, file), _agreement(teacher, file), nll]
    return torch.stack([*found, _kl(student, file), _agreement(student, file)])


def row_sums(columns: Tensor, answer_start: int) -> Sums:
    """All sums of one row from its `token_columns`.

    Column r is of token r + 1, so the answer's columns begin at answer_start - 1.
    """
    sums: Sums = {"tokens": float(columns.shape[1])}
    sums["answer_tokens"] = sums["tokens"] - answer_start + 1
    for name, values in zip(COLUMNS, columns, strict=True):
        sums[name] = float(values.sum())
        sums[f"{name}_answer"] = float(values[answer_start - 1 :].sum())
    return sums


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
    compared = not any(math.isnan(one["kl"]) for one in sums)
    for end, weight in (("", "tokens"), ("_answer", "answer_tokens")):
        if compared:
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


def check_special(file: str, tokenizer: Any, metadata: Mapping[str, Any]) -> None:
    """Errors: ModelError if the file names another first or end token than the student has.

    llama.cpp knows end-of-turn tokens by their text too, so it would stop there nevertheless; but
    it would also stop at a token that is none.
    """
    for what, key, ours in (
        ("first", "bos", tokenizer.bos_token_id),
        ("end", "eos", tokenizer.eos_token_id),
    ):
        theirs = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if None not in (ours, theirs) and ours != theirs:
            raise ModelError(
                f"{file} takes token {theirs} for its {what} token, and the student {ours}.",
                "The tokenizer did not survive the conversion.",
            )


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


def check_stop(file: str, answers: native.Answers) -> None:
    """Errors: ModelError if the student's end token does not end generation in llama.cpp."""
    if not answers.stops:
        raise ModelError(
            f"{file} does not stop at the student's end-of-turn token in llama.cpp.",
            "The student's tokenizer config must name its end-of-turn token as eos_token.",
        )


def check_numbers(file: str, sums: Sequence[Sums]) -> None:
    """Errors: ModelError if what the file says of a row is not a number."""
    if bad := sum(not math.isfinite(one["kl_student"] + one["nll"]) for one in sums):
        raise ModelError(
            f"{file} says what is not a number on {bad} of {len(sums)} rows.",
            "A weight of it is damaged, or too large for its type.",
        )
