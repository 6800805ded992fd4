"""How near a student is to a teacher with another tokenizer, span by span.

In: each side's log-loss and likeliest word at each of its own tokens, the spans that both cut the
same text into (`models/align.py`). Out: sums an example. Knows nothing of how hidden states were
made.

A KL over one vocabulary does not exist here. What does, in nats and over an example's S spans:

    divergence   sum of KL(teacher || student) of two outcomes: the span's bytes are said, or not
    agree        spans before which both name the same bytes as the likeliest next token
    nats         -log p of the spans' bytes; over log 2 and their number: bits a byte

Bits a byte compare models whatever their tokens are; a perplexity a token does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from potstill.models.align import Span, Words, same_bytes
from potstill.models.output import OutputLayer

SURE = -1e-6
"""Log-likelihoods above it are taken for it: what is nearer to 0 is rounding."""


@dataclass(frozen=True)
class SpanScores:
    """Sums over the spans of one example; `*_answer` over its answer's alone."""

    spans: int
    spans_answer: int
    bytes: int
    bytes_answer: int
    divergence: float
    divergence_answer: float
    agree: float
    agree_answer: float
    nats: float
    nats_answer: float


@dataclass(frozen=True)
class Apart:
    """What is needed to compare one model with a teacher whose tokens are others.

    spans: of each example; the student's side is the first. words: both sides' vocabularies.
    """

    spans: Sequence[Sequence[Span]]
    words: tuple[Words, Words]
    states: Path
    teacher: bool
    """This model is the teacher: what it says is kept for the others."""
    reads_as_teacher: bool = False
    """This model has the teacher's tokens: the teacher, or what it was before its correction."""

    def rows(self, hidden: Tensor, targets: Tensor, head: OutputLayer, at_once: int) -> Tensor:
        """Log-loss and likeliest word of each row: [2, rows] float64. hidden: [rows, width]."""
        parts = []
        for some, own in zip(
            *(torch.split(one, at_once) for one in (hidden, targets)), strict=True
        ):
            log_q = torch.log_softmax(head.logits(some), dim=-1)
            nll = -log_q.gather(1, own[:, None])[:, 0]
            parts.append(torch.stack([nll.double(), log_q.argmax(-1).double()]))
        return torch.cat(parts, dim=1) if parts else torch.zeros(2, 0, dtype=torch.float64)

    def sums(self, index: int, rows: Tensor) -> SpanScores:
        """Of example `index`; row r [2, L - 1] is of token r + 1."""
        file = self.states / f"{index:06d}-said.safetensors"
        if self.teacher:
            save_file({"rows": rows.contiguous()}, file)
        theirs = load_file(file)["rows"]
        spans, side = self.spans[index], 1 if self.reads_as_teacher else 0
        log_p = _likelihoods(theirs[0], [span.second for span in spans])
        log_q = _likelihoods(rows[0], [(span.first, span.second)[side] for span in spans])
        values = {
            "spans": torch.ones(len(spans), dtype=torch.float64),
            "bytes": torch.tensor([float(span.size) for span in spans], dtype=torch.float64),
            "divergence": two_outcome_kl(log_p, log_q),
            "agree": torch.tensor([self._agree(span, rows, theirs) for span in spans]).double(),
            "nats": -log_q,
        }
        answer = torch.tensor([span.answer for span in spans], dtype=torch.bool)
        found: dict[str, float] = {}
        for name, value in values.items():
            kind = int if name in ("spans", "bytes") else float
            found[name] = kind(value.sum())
            found[f"{name}_answer"] = kind(value[answer].sum())
        return SpanScores(**found)  # type: ignore[arg-type]

    def _agree(self, span: Span, rows: Tensor, theirs: Tensor) -> float:
        said = int(theirs[1, span.second[0] - 1])
        if self.reads_as_teacher:
            return float(int(rows[1, span.second[0] - 1]) == said)
        return float(same_bytes(self.words, (int(rows[1, span.first[0] - 1]), said), span.leads))


def two_outcome_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL of "said" and "not said": p log p/q + (1 - p) log (1 - p)/(1 - q). [S], [S] -> [S]."""
    log_p, log_q = log_p.clamp(max=SURE), log_q.clamp(max=SURE)
    others = [torch.log(-torch.expm1(one)) for one in (log_p, log_q)]
    return log_p.exp() * (log_p - log_q) - torch.expm1(log_p) * (others[0] - others[1])


def _likelihoods(nll: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
    """-sum of the log-losses of each span's tokens; token t is row t - 1."""
    sums = torch.cat([nll.new_zeros(1), nll.cumsum(0)])
    first, last = (torch.tensor([span[end] - 1 for span in spans]).long() for end in (0, 1))
    return sums[first] - sums[last]
