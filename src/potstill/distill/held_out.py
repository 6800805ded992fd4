"""Held-out figures while training: what they mean is the same for every objective.

In: a student with its objective, the teacher's exact signal, held-out rows. Out: means over tokens.
Knows nothing of steps, optimizers or checkpoints.
"""

from __future__ import annotations

import torch

from potstill.distill import losses
from potstill.distill.aligned import AlignedTeacher
from potstill.distill.batches import RowSet
from potstill.distill.held_out_aligned import aligned_figures
from potstill.distill.held_out_rows import batches_of, loss_of
from potstill.distill.ranks import Ranks
from potstill.distill.signals import TeacherSignal
from potstill.distill.terms import TermLoss, Weights

SUMMED = ("kl", "ce", "kd", "agreement", "student_entropy", "teacher_entropy")


@torch.no_grad()
def figures(
    loss: TermLoss,
    signal: TeacherSignal | AlignedTeacher,
    data: RowSet,
    weights: Weights,
    *,
    padding: int,
    ranks: Ranks,
) -> dict[str, float]:
    """Forward KL and cross-entropy at temperature 1, over all tokens and over answers; agreement
    and entropies; and `loss`: divergence and cross-entropy of the objective with these weights.

    With a teacher of another tokenizer there is no KL over one vocabulary; `aligned_figures` says
    what there is. Terms of hidden states and attention maps have no part in `loss`: it tells how
    close the student's words are. Where the objective has neither of the two it is the forward KL.
    """
    if isinstance(signal, AlignedTeacher):
        return aligned_figures(loss, signal, data, weights, padding=padding, ranks=ranks)
    objective, sums, tokens = (
        loss.objective,
        dict[str, float](),
        dict.fromkeys(("", "_answer"), 0.0),
    )
    plain = loss.divergence is losses.forward_kl_rows and objective.temperature == 1.0
    device = next(loss.student.parameters()).device
    for batch in batches_of(data, ranks, padding, device):
        counts = {"": batch.kd_counts, "_answer": batch.ce_counts}
        states, said = loss.states(batch), signal.tokens(data.rows, batch)
        ones = torch.ones_like(batch.kd_counts)
        scores = loss.scores(
            states, said, batch.targets, ones, ones, losses.forward_kl_rows, 1.0, details=True
        )
        kd = scores.kd
        if weights.kd and not plain:
            kd = loss.scores(states, said, batch.targets, ones, 0 * ones).kd
        found = (
            scores.kd,
            scores.ce,
            kd,
            scores.agreement,
            scores.student_entropy,
            scores.teacher_entropy,
        )
        for name, values in zip(SUMMED, found, strict=True):
            for where, count in counts.items():
                key = name + where
                sums[key] = sums.get(key, 0.0) + float((values * count).sum())
        for where, count in counts.items():
            tokens[where] += float(count.sum())
    sums = ranks.sums(sums)
    tokens = ranks.sums(tokens)
    means = {
        name: total / max(1.0, tokens["_answer" if name.endswith("_answer") else ""])
        for name, total in sums.items()
    }
    value = loss_of(objective, weights, means, "kl")
    shown = ("kl", "kl_answer", "ce", "ce_answer", "agreement", "student_entropy")
    return {"loss": value} | {name: means[name] for name in (*shown, "teacher_entropy")}
