"""Held-out figures where student and teacher have different tokenizers.

In: a student with its objective, the aligned teacher, held-out rows. Out: means over spans, tokens
and bytes. Knows nothing of steps, optimizers or checkpoints.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from potstill.distill import losses
from potstill.distill.aligned import AlignedTeacher, AlignedTokens
from potstill.distill.batches import MicroBatch, RowSet
from potstill.distill.fused import CHUNK_BYTES
from potstill.distill.held_out_rows import batches_of, loss_of
from potstill.distill.ranks import Ranks
from potstill.distill.spans import span_divergence, summed
from potstill.distill.terms import TermLoss, Weights
from potstill.models.output import output_layer


@torch.no_grad()
def aligned_figures(
    loss: TermLoss,
    signal: AlignedTeacher,
    data: RowSet,
    weights: Weights,
    *,
    padding: int,
    ranks: Ranks,
) -> dict[str, float]:
    """What is well-defined over two vocabularies, of the student as it is.

    `spans`: KL of each span's two outcomes, said or not, at tau 1, a mean over spans. `agreement`:
    share of spans before which both name the same bytes as the likeliest next token. `ce`: a mean
    over the student's tokens. `bits_per_byte`: of the words' bytes that spans cover.
    Each also over answers alone. `loss`: of the objective, with these weights.
    """
    sums: dict[str, float] = {}
    device = next(loss.student.parameters()).device
    for batch in batches_of(data, ranks, padding, device):
        states = loss.states(batch)
        said: AlignedTokens = signal.tokens(data.rows, batch)
        for name, value in _sums(loss, signal, batch, states, said, weights).items():
            sums[name] = sums.get(name, 0.0) + value
    sums = ranks.sums(sums)
    sums |= _sizes(data)
    means: dict[str, float] = {}
    for where in ("", "_answer"):
        spans, tokens, size = (max(1.0, sums[f"{n}{where}"]) for n in ("count", "tokens", "bytes"))
        means |= {
            f"{name}{where}": sums[f"{name}{where}"] / spans for name in ("spans", "agreement")
        }
        means[f"kd{where}"] = sums[f"kd{where}"] / spans
        means[f"ce{where}"] = sums[f"ce{where}"] / tokens
        means[f"bits_per_byte{where}"] = sums[f"nats{where}"] / size / math.log(2)
    value = loss_of(loss.objective, weights, means, "spans")
    hidden = {"kd", "kd_answer"}
    return {"loss": value} | {name: mean for name, mean in means.items() if name not in hidden}


def _sums(
    loss: TermLoss,
    signal: AlignedTeacher,
    batch: MicroBatch,
    states: Tensor,
    said: AlignedTokens,
    weights: Weights,
) -> dict[str, float]:
    """Sums over the batch, over all and over answers."""
    assert said.log_p is not None
    ones = torch.ones_like(batch.kd_counts)
    ce = loss.scores(states, None, batch.targets, 0 * ones, ones).ce
    nats = summed(ce, said)
    same = _same_bytes(loss, signal, states[said.starts], said)
    plain = span_divergence(-nats, said.log_p, losses.forward_kl_rows)
    found: dict[str, float] = {}
    for where, chosen in (("", torch.ones_like(said.answer)), ("_answer", said.answer)):
        found[f"count{where}"] = float(chosen.sum())
        found[f"spans{where}"] = float(plain[chosen].sum())
        found[f"agreement{where}"] = float(same[chosen].sum())
        found[f"nats{where}"] = float(nats[chosen].sum())
        counts = batch.kd_counts if not where else batch.ce_counts
        found[f"ce{where}"] = float((ce * counts).sum())
        found[f"tokens{where}"] = float(counts.sum())
        found[f"kd{where}"] = 0.0
        if weights.kd and where == ("_answer" if loss.objective.kd_tokens == "answer" else ""):
            part = said.only(chosen)
            found[f"kd{where}"] = loss.output_terms(states, part, batch, 1.0, 0.0)[1]
    return found


def _same_bytes(
    loss: TermLoss, signal: AlignedTeacher, states: Tensor, said: AlignedTokens
) -> Tensor:
    """Of each span [S]: 1 where the student's likeliest next token has the teacher's bytes."""
    assert said.likeliest is not None
    layer = output_layer(loss.student).cut(loss.vocabulary, loss.dtype)
    found = []
    for part in torch.split(states, max(1, CHUNK_BYTES // (4 * loss.vocabulary))):
        found += layer.logits(part).argmax(-1).tolist()
    pairs = zip(found, said.likeliest.tolist(), said.leads, strict=True)
    same = [signal.common.same(ours, theirs, leads) for ours, theirs, leads in pairs]
    return torch.tensor(same, dtype=torch.float32, device=states.device)


def _sizes(data: RowSet) -> dict[str, float]:
    """Bytes of the text that spans cover, in all rows and in answers."""
    assert data.teacher is not None
    spans = [span for some in data.teacher.spans for span in some]
    return {
        "bytes": float(sum(span.size for span in spans)),
        "bytes_answer": float(sum(span.size for span in spans if span.answer)),
    }
