"""Questions of a file that is no part of a run, answered by the run's models and scored.

In: rows with questions, how a row is put to a model, the models' folders. Out: answers by model and
row id, which `predictions.py` scores. Knows nothing of commands; measures no fidelity, as a row of
another's file has no gold conversation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from potstill.errors import InputError
from potstill.evaluate.answer_scores import Gold
from potstill.evaluate.answers import Answer, ReadPrompt, write_answers
from potstill.evaluate.config import EvaluateConfig
from potstill.evaluate.forward import check_model, head_of
from potstill.evaluate.scan import draw_of
from potstill.models.chat import encode_example
from potstill.models.load import load_model, load_tokenizer
from potstill.models.prefix_reader import Plan, PrefixReader
from potstill.models.sampling import end_tokens
from potstill.models.size import longest_text
from potstill.records import Turn

ANSWER = Turn(role="assistant", content="-")
"""Stands for an answer that is yet to be written: the prompt is what comes before it."""


@dataclass(frozen=True)
class Answered:
    """answers: model -> row id -> text. too_long: ids that some model has no room for."""

    answers: dict[str, dict[str, str]]
    too_long: tuple[str, ...]


def answer_rows(
    rows: Sequence[Gold],
    asked: Callable[[Gold], str],
    models: Mapping[str, Path],
    config: EvaluateConfig,
    tell: Callable[[str, int], None] = lambda model, done: None,
) -> Answered:
    """Every model answers every row that fits into all of them, one model in memory at a time.

    asked: how a question is put to a model; a row that is a conversation is put as it stands.
    Errors: InputError if no row fits, or a row has no question; ModelError for a model that cannot
    be read.
    """
    missing = next((row.id for row in rows if not row.turns and not row.question.strip()), None)
    if missing is not None:
        raise InputError(f"The row {missing} has no question to ask.")
    prompts: dict[str, list[list[int]]] = {}
    fits = [True] * len(rows)
    for name, folder in models.items():
        tokenizer = load_tokenizer(folder, config.template)
        limit = min(config.max_tokens, longest_text(folder) or config.max_tokens)
        prompts[name] = []
        for place, row in enumerate(rows):
            turns = row.turns or (Turn(role="user", content=asked(row)),)
            encoded = encode_example(tokenizer, [*turns, ANSWER], config.max_tokens)
            room = len(encoded.prompt) + config.answer_tokens <= limit
            fits[place] = fits[place] and room and not encoded.truncated
            prompts[name].append(encoded.prompt)
    kept = [place for place, fit in enumerate(fits) if fit]
    if not kept:
        raise InputError(
            f"None of {len(rows)} rows leaves room for an answer in {config.max_tokens} tokens.",
            "Raise evaluate.max_tokens in the run's recipe.",
        )
    found: dict[str, dict[str, str]] = {}
    for name, folder in models.items():
        tokenizer, model = load_tokenizer(folder), load_model(folder, config.dtype)
        own = [prompts[name][place] for place in kept]
        ids = [rows[place].id for place in kept]
        said = answer_prompts(model, tokenizer, own, ids, config, partial(tell, name))
        texts = (tokenizer.decode(one.ids, skip_special_tokens=True).strip() for one in said)
        found[name] = dict(zip(ids, texts, strict=True))
        del model
    return Answered(found, tuple(row.id for row, fit in zip(rows, fits, strict=True) if not fit))


@torch.inference_mode()
def answer_prompts(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    rows: Sequence[str],
    config: EvaluateConfig,
    tell: Callable[[int], None] = lambda done: None,
) -> list[Answer]:
    """Answers in the prompts' order; beginnings that prompts share are read once.

    rows: the prompts' ids, from which drawn answers have their draws.
    Errors: ModelError for a model that cannot be measured.
    """
    vocabulary = max(tokenizer.get_vocab().values()) + 1
    head, reader = head_of(model, vocabulary), PrefixReader(model)
    check_model(model, head, prompts[0], "answering")
    ends = end_tokens(model, tokenizer)
    found: dict[int, Answer] = {}
    waiting: dict[int, ReadPrompt] = {}

    def write() -> None:
        answers = write_answers(
            model, list(waiting.values()), ends, config.answer_tokens, vocabulary
        )
        found.update(zip(waiting, answers, strict=True))
        waiting.clear()
        tell(len(found))

    for place, shared in Plan.of(prompts):
        prompt = prompts[place]
        logits = head.logits(reader.read(prompt, shared)[-1:])[0]
        draw = draw_of(config.decoding, rows[place])
        first = int((logits if draw is None else draw.noisy(logits)).argmax())
        waiting[place] = ReadPrompt(reader.prefix(len(prompt)), len(prompt), first, draw)
        if len(waiting) == config.batch_size:
            write()
    if waiting:
        write()
    return [found[place] for place in range(len(prompts))]
