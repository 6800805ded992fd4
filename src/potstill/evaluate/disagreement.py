"""Where a student and its teacher part, token by token of one answer.

In: both models, a conversation whose last turn is the answer. Out: of each of its tokens the
divergence, whether both would have begun with the same token, and what the teacher would have said.
The figures are those of `fidelity.py`, of one row each. Knows nothing of runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from potstill.errors import ModelError
from potstill.evaluate.fidelity import ROWS, row_scores
from potstill.evaluate.forward import check_model, head_of, not_finite
from potstill.models.chat import EncodedExample, encode_example
from potstill.models.load import Source, load_model, load_tokenizer
from potstill.models.prefix_reader import PrefixReader
from potstill.records import Turn

LONGEST = 4096


@dataclass(frozen=True)
class TokenGap:
    """One token of the answer. kl: nats, teacher to student, before that token was said. agree:
    whether both rank the same token first. instead: the teacher's first. probability: the
    student's own, of the token that stands here. special: a sign of the template and no word, such
    as the end of the answer."""

    text: str
    kl: float
    agree: bool
    instead: str
    probability: float
    special: bool


def disagreement(
    teacher: Source, student: Source, turns: Sequence[Turn], template: str = ""
) -> list[TokenGap]:
    """The gaps of the answer's tokens, its end included.

    teacher, student: folders or references. template: a chat template instead of their own.
    Errors: ModelError for models whose tokens are not the same, or that cannot be measured.
    """
    tokenizers = [load_tokenizer(one, template) for one in (teacher, student)]
    if tokenizers[0].get_vocab() != tokenizers[1].get_vocab():
        raise ModelError(
            "The student's tokens are not its teacher's, so they cannot be compared one by one.",
            "The report compares them over the text that both cut alike.",
        )
    encoded = [encode_example(one, turns, LONGEST) for one in tokenizers]
    if encoded[0] != encoded[1] or encoded[0].truncated:
        raise ModelError(
            "Teacher and student turn this conversation into different tokens, or it is too long."
        )
    tokenizer = tokenizers[0]
    with torch.inference_mode():
        (hers, her_head), (its, its_head) = (
            _states(source, encoded[0], len(tokenizer), name)
            for source, name in ((teacher, "teacher"), (student, "student"))
        )
        targets = torch.tensor(encoded[0].answer)
        found = row_scores(hers, its, targets, her_head, its_head)
        firsts = her_head.logits(hers).argmax(-1).tolist()
    if not torch.isfinite(found).all():
        raise not_finite("student")
    kl, agree, nll = (found[ROWS.index(name)].tolist() for name in ("kl", "agree", "nll"))
    signs = set(tokenizer.all_special_ids)
    return [
        TokenGap(
            text=text,
            kl=one,
            agree=bool(same),
            instead=tokenizer.decode([first]),
            probability=math.exp(-told),
            special=token in signs,
        )
        for token, text, one, same, first, told in zip(
            encoded[0].answer,
            pieces(tokenizer, encoded[0].answer),
            kl,
            agree,
            firsts,
            nll,
            strict=True,
        )
    ]


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text in tokens. A letter that several tokens make stands with the last of them."""
    found, before = [], ""
    for count in range(1, len(ids) + 1):
        text = str(tokenizer.decode(ids[:count], clean_up_tokenization_spaces=False))
        whole = before if text.endswith("\ufffd") and count < len(ids) else text
        found.append(whole[len(before) :])
        before = whole
    return found


def _states(source: Source, encoded: EncodedExample, vocabulary: int, name: str) -> tuple[Any, Any]:
    """Last hidden states of the rows that predict the answer's tokens, and the output layer."""
    model = load_model(source)
    head = head_of(model, vocabulary)
    check_model(model, head, encoded.ids, name)
    hidden = PrefixReader(model).read(encoded.ids, 0)
    return hidden[encoded.answer_start - 1 : len(encoded.ids) - 1].float(), head
