"""Output layer, divergence and cross-entropy in one: no logits of a whole batch ever exist.

In: last hidden states of N tokens of the student, its output layer, what the teacher says of these
tokens, per-token weights. Out: the weighted loss, differentiable with respect to the student's
hidden states, output weight and bias, and each token's unweighted figures for the record.
Knows nothing of masks, steps or models: which tokens count, and how much, is in the weights.

    hidden [n, d] --chunk of rows--> products (bf16 or fp32) --block of rows--> softmaxes (fp32)
                                        |                                          |
    grad hidden, grad weight <----------+-------------- grad products <------------+

The gradients are formed in the forward pass, while a chunk's logits are there, so the backward
pass only scales them (as Liger kernels do: Hsu et al. 2024, arXiv:2410.10989). Matrix products
are done by chunks, which keeps them efficient; everything element-wise by blocks that fit into
the processor's cache, which makes it 2 to 5 times faster on a CPU. Rows whose weights are all
zero are never multiplied. Where student and teacher have different numbers of output rows
(vocabularies padded to a round number), only the `vocabulary` real ones that they share count.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.distill.losses import LogDivergence, forward_kl_rows
from potstill.distill.signals import HiddenStates, Ranked, Samples, TeacherTokens, TopK
from potstill.distill.teaching import dense_block, ranked_block, samples_block, top_k_block
from potstill.models.output import OutputLayer

CHUNK_BYTES = 96 << 20
"""Of a chunk's logits in fp32 (512 rows of 49,152 words): enough for full-speed products."""
BLOCK_ELEMENTS = {"cpu": 1 << 19}
"""Logits that are worked on element by element at a time; on a GPU the whole chunk."""

SLICE_WORDS = 8192
"""Words whose rows of the output weight get their gradient at once."""


@dataclass(frozen=True)
class Terms:
    """What is asked of every token, all of length N; a weight of 0 means not asked."""

    targets: Tensor
    """int64: the token that really follows."""
    kd_weights: Tensor
    """fp32: weight of the divergence; the T^2 is applied here and is not part of it."""
    ce_weights: Tensor
    """fp32: weight of the cross-entropy."""


@dataclass(frozen=True)
class Scores:
    """The loss and what it is made of; all but `loss` are [N], unweighted, without gradient.

    `kd` (with its T^2) is 0 for tokens whose kd weight is 0; likewise `ce`. The others are there
    if details were asked for, at the temperature, for tokens with a kd weight, else 0. `agreement`
    is 1 where both name the same likeliest word (a sampled teacher names none: 0); the entropies
    are in nats, the teacher's is known from its hidden states alone, else it is 0.
    """

    loss: Tensor
    kd: Tensor
    ce: Tensor
    agreement: Tensor
    student_entropy: Tensor
    teacher_entropy: Tensor


def linear_scores(
    student_hidden: Tensor,
    student: OutputLayer,
    teacher: TeacherTokens | None,
    terms: Terms,
    *,
    vocabulary: int,
    divergence: LogDivergence = forward_kl_rows,
    temperature: float = 1.0,
    dtype: torch.dtype = torch.float32,
    chunk_rows: int | None = None,
    details: bool = False,
) -> Scores:
    """sum_i kd_i T^2 D(teacher_i || student_i; T) + sum_i ce_i CE_i, and its parts.

    student_hidden: [N, d]; teacher: what it says of each of the N tokens, None where no token has
    a kd weight; vocabulary: real words that both have. dtype: of the matrix products. chunk_rows:
    rows multiplied at once (default by memory). With sampled teachers the divergence must be the
    forward KL, the only one that is linear in the teacher's distribution.
    """
    wanted = torch.is_grad_enabled()
    needs = tuple(
        wanted and one is not None and one.requires_grad
        for one in (student_hidden, student.weight, student.bias)
    )
    output = None
    if isinstance(teacher, HiddenStates | Ranked):
        words = vocabulary if isinstance(teacher, HiddenStates) else teacher.output.words
        output = teacher.output.cut(words, dtype).detached()
    widest = max(vocabulary, 0 if output is None else output.words)
    work = _Work(
        student.cut(vocabulary, dtype).detached(),
        teacher,
        output,
        terms,
        vocabulary,
        divergence,
        temperature,
        dtype,
        chunk_rows or max(1, CHUNK_BYTES // (4 * widest)),
        details,
        needs,
    )
    found = _LinearScores.apply(student_hidden, student.weight, student.bias, work)  # type: ignore[no-untyped-call]
    return Scores(*found)


@dataclass(frozen=True)
class _Work:
    """Everything that the chunks need, besides what takes gradients."""

    student: OutputLayer
    teacher: TeacherTokens | None
    teacher_output: OutputLayer | None
    terms: Terms
    vocabulary: int
    divergence: LogDivergence
    temperature: float
    dtype: torch.dtype
    chunk_rows: int
    details: bool
    needs: tuple[bool, ...]

    @property
    def learns(self) -> bool:
        return any(self.needs)


@dataclass(frozen=True)
class _Figures:
    """Per-token results, filled block by block."""

    kd: Tensor
    ce: Tensor
    agreement: Tensor
    student_entropy: Tensor
    teacher_entropy: Tensor

    @classmethod
    def zeros(cls, count: int, device: torch.device) -> _Figures:
        return cls(*(torch.zeros(count, device=device) for _ in range(5)))


class _LinearScores(torch.autograd.Function):
    """The chunked sum with its gradients formed on the way."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, work: _Work
    ) -> tuple[Tensor, ...]:
        figures = _Figures.zeros(len(hidden), hidden.device)
        terms, vocabulary = work.terms, work.vocabulary
        grads = [
            torch.zeros_like(one) if needed and one is not None else None
            for one, needed in zip((hidden, weight, bias), work.needs, strict=True)
        ]
        # Tokens that want the teacher first, so that no chunk mixes both kinds.
        asks_teacher = terms.kd_weights != 0
        taught = asks_teacher.nonzero()[:, 0]
        untaught = (~asks_teacher & (terms.ce_weights != 0)).nonzero()[:, 0]
        # Used again for every chunk: fresh memory costs page faults.
        count = min(work.chunk_rows, len(hidden))
        widths = (
            vocabulary,
            vocabulary if work.teacher_output is None else work.teacher_output.words,
        )
        buffers = [hidden.new_empty((count, width), dtype=work.dtype) for width in widths]
        for rows in [
            *torch.split(taught, work.chunk_rows),
            *torch.split(untaught, work.chunk_rows),
        ]:
            if not len(rows):
                continue
            states = hidden[rows].to(work.dtype)
            # Become their own gradient, block by block.
            products = work.student.products(states, out=buffers[0][: len(rows)])
            _score_chunk(rows, products, buffers[1][: len(rows)], work, figures)
            if grads[0] is not None:
                grads[0][rows] = (products @ work.student.weight).to(hidden.dtype)
            if grads[1] is not None:
                for some in _slices(vocabulary):  # no second matrix of the weight's size
                    grads[1][some] += products[:, some].T @ states
            if grads[2] is not None:
                grads[2][:vocabulary] += products.sum(0, dtype=torch.float32)
        loss = (figures.kd * terms.kd_weights).sum() + (figures.ce * terms.ce_weights).sum()
        ctx.save_for_backward(*grads)
        results = tuple(vars(figures).values())
        ctx.mark_non_differentiable(*results)
        return loss, *results

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grads = ctx.saved_tensors
        if float(grad_loss) != 1.0:  # the usual case needs no pass over the weight's gradient
            grads = [None if one is None else one * grad_loss for one in grads]
        return (*grads, None)


def _slices(vocabulary: int) -> Iterator[slice]:
    for start in range(0, vocabulary, SLICE_WORDS):
        yield slice(start, min(start + SLICE_WORDS, vocabulary))


def _score_chunk(
    rows: Tensor, products: Tensor, room: Tensor, work: _Work, figures: _Figures
) -> None:
    """Fill `figures` at `rows`; `products` become dloss/dproducts if anything learns.

    room: like `products`, for the teacher's.
    """
    taught = bool(work.terms.kd_weights[rows[0]] != 0)
    theirs = None
    if taught and isinstance(work.teacher, HiddenStates | Ranked):
        assert work.teacher_output is not None
        theirs = work.teacher_output.products(work.teacher.states[rows].to(work.dtype), out=room)
    step = max(1, BLOCK_ELEMENTS.get(rows.device.type, CHUNK_BYTES) // work.vocabulary)
    for start in range(0, len(rows), step):
        block, part = rows[start : start + step], slice(start, start + step)
        logits = work.student.shape(products[part].float())
        grad = None
        if taught:
            theirs_here = None if theirs is None else theirs[part]
            grad = _teach(block, logits, theirs_here, work, figures)
        grad = _answer(block, logits, grad, work, figures)
        if work.learns and grad is not None:
            products[part] = work.student.shape_gradient(logits, grad)


def _teach(
    rows: Tensor, logits: Tensor, theirs: Tensor | None, work: _Work, figures: _Figures
) -> Tensor | None:
    """The divergence of a block: its figures, and its gradient if anything learns."""
    weights = work.terms.kd_weights[rows].unsqueeze(-1) if work.learns else None
    arguments = (work.divergence, work.temperature, weights)
    if theirs is not None:
        assert work.teacher_output is not None
        z = work.teacher_output.shape(theirs.float())
        if isinstance(work.teacher, Ranked):
            figures.kd[rows], grad = ranked_block(logits, z, work.temperature, weights)
            return grad
        figures.kd[rows], grad, seen = dense_block(logits, z, *arguments, look=work.details)
        if seen is not None:
            figures.agreement[rows] = seen.agreement
            figures.student_entropy[rows] = seen.student_entropy
            figures.teacher_entropy[rows] = seen.teacher_entropy
        return grad
    if isinstance(work.teacher, TopK):
        top = work.teacher[rows]
        if work.details:
            best = logits.gather(1, top.ids[:, :1])[:, 0]  # the likeliest stands first
            figures.agreement[rows] = (best >= logits.amax(-1)).float()
        figures.kd[rows], grad = top_k_block(logits, top, *arguments)
    else:
        assert isinstance(work.teacher, Samples)
        figures.kd[rows], grad = samples_block(
            logits, work.teacher[rows], work.temperature, weights
        )
    if work.details:
        log_q = F.log_softmax(logits / work.temperature, dim=-1)
        figures.student_entropy[rows] = -torch.linalg.vecdot(log_q.exp(), log_q)
    return grad


def _answer(
    rows: Tensor, logits: Tensor, grad: Tensor | None, work: _Work, figures: _Figures
) -> Tensor | None:
    """The cross-entropy of a block; its gradient is added to `grad`."""
    weights = work.terms.ce_weights[rows]
    asked = (weights != 0).nonzero()[:, 0]
    if not len(asked):
        return grad
    whole = len(asked) == len(rows)
    index = work.terms.targets[rows[asked]].unsqueeze(-1)
    log_q = F.log_softmax(logits if whole else logits[asked], dim=-1)
    figures.ce[rows[asked]] = -log_q.gather(-1, index)[:, 0]
    if not work.learns:
        return None
    scale = weights[asked].unsqueeze(-1)
    ours = log_q.exp_().mul_(scale)
    ours.scatter_add_(-1, index, -scale)
    if grad is None:
        return ours if whole else torch.zeros_like(logits).index_add_(0, asked, ours)
    grad.index_add_(0, asked, ours)
    return grad
