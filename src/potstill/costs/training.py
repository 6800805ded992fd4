"""What a training step takes on every rank: whole copies (DDP), shards (FSDP), DeepSpeed's parts.

In: a `Training`, a cluster. Out: bytes of memory by what holds them, one step as a `Phase`. Knows
no recipe.

Weights are fp32 with fp32 gradients and AdamW's two moments, 16 bytes each, as the engine trains
them. DDP holds all of it on every rank and adds gradients up in a ring, 2 (n - 1) / n of their
bytes sent by each rank (Patarasuk and Yuan 2009, doi:10.1016/j.jpdc.2008.09.002). FSDP holds a
share of it, gathers each layer's fp32 weights for the forward and again for the backward pass of
every micro-batch, and scatters the summed gradients, (n - 1) / n of the bytes each time
(Rajbhandari et al. 2020, ZeRO stage 3, arXiv:1910.02054; Zhao et al. 2023, arXiv:2304.11277).
DeepSpeed's stages 1 and 2 hold whole weights on every rank, and in parts the moments, a copy of the
weights, and from stage 2 on the gradients, which then go out with every micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from potstill.costs.binding import USABLE, Phase
from potstill.costs.cluster import Cluster
from potstill.costs.decoder import Decoder
from potstill.distill.loading import BYTES_A_WEIGHT
from potstill.models.adapter_config import AdapterKind, Precision

WEIGHT, GRADIENT, MOMENTS, OPTIMIZER_TRAFFIC = 4, 4, 8, 28
"""Bytes a trained weight: itself; its gradient; two moments; these and itself read and written,
the gradient read."""
ADAPTER_SHARE = 0.02
"""Of the weights that low-rank adapters are, about (rank 16 on every matrix of a 7B model)."""
LAYER_BYTES = {"full": None, "8bit": 1.0, "4bit": 4.127 / 8}
"""Of a teacher's weight in a linear layer; 4bit: NF4 with double quantisation (Dettmers et al.
2023, arXiv:2305.14314, section 3)."""
LOSS_ROWS, LOSS_COPIES = 512, 3
"""Rows of a chunk of the fused loss, and matrices of them by the vocabulary that are there at
once."""

Held = Literal["live", "output", "nothing"]
"""How much of the teacher a step needs: all of it, its output layer, none."""


@dataclass(frozen=True)
class Training:
    """What is trained, and how."""

    student: Decoder
    teacher: Decoder | None = None
    teacher_held: Held = "nothing"
    adapter: AdapterKind = "none"
    teacher_precision: Precision = "full"
    micro_tokens: float = 4096
    """Of a rank at once."""
    step_tokens: float = 16_384
    """Of an optimizer step, all ranks together."""
    seen: float = 256
    """Tokens that each one sees, in the mean."""
    checkpointed: bool = False
    scored: float = 1.0
    """Share of the tokens whose logits the loss needs."""
    signal_bytes: float = 0.0
    """Read from a file for each token."""
    zero: int = 0
    """DeepSpeed's stage 1 or 2, whose weights are whole; 3 is as shards are."""
    offloaded: bool = False
    """Whether DeepSpeed keeps moments, gradients and the weights that they change in the computer's
    memory."""

    @property
    def trained(self) -> float:
        """Weights that have gradients."""
        return self.student.weights * (1.0 if self.adapter == "none" else ADAPTER_SHARE)

    def micro(self, ranks: int) -> float:
        """Tokens of a micro-batch, as no rank gets more than its share of a step."""
        return min(self.micro_tokens, self.step_tokens / ranks)


def teacher_bytes(training: Training, number: int) -> float:
    """Of what is held of the teacher. number: bytes of the products' type."""
    teacher = training.teacher
    if teacher is None or training.teacher_held == "nothing":
        return 0.0
    if training.teacher_held == "output":
        return float(number * teacher.output_weights)
    return whole_bytes(teacher, training.teacher_precision, number)


def whole_bytes(teacher: Decoder, precision: Precision, number: int) -> float:
    """Of a whole teacher; embeddings and output layer are never in fewer bits."""
    ends = number * teacher.output_weights * (1 if teacher.tied else 2)
    return (LAYER_BYTES[precision] or number) * teacher.layers * teacher.layer_weights + ends


def memory_of(training: Training, cluster: Cluster, *, sharded: bool = False) -> dict[str, float]:
    """Bytes of a rank by what holds them: weights, teacher, activations, loss, gathered."""
    number, ranks = cluster.accelerator.number_bytes, cluster.ranks
    student, teacher = training.student, training.teacher
    weights = float(BYTES_A_WEIGHT[training.adapter] * student.weights)
    if training.zero and ranks > 1:
        whole = WEIGHT + (GRADIENT if training.zero == 1 else 0)
        parts = WEIGHT + MOMENTS + (GRADIENT if training.zero == 2 else 0)
        weights = (whole + (0 if training.offloaded else parts / ranks)) * student.weights
    if training.adapter == "none" and number < 4 and not sharded:
        weights += number * student.weights  # autocast keeps the step's copies
    held, gathered = teacher_bytes(training, number), 0.0
    if sharded:
        weights = WEIGHT * student.weights / ranks if training.offloaded else weights / ranks
        unit = max(student.layer_weights, student.output_weights)
        gathered = float((2 * WEIGHT + GRADIENT) * unit)  # this layer, the next one, a gradient
    kept = training.micro(ranks) * student.kept_bytes(checkpointed=training.checkpointed)
    words = max(student.vocabulary, teacher.vocabulary if teacher and held else 0)
    return {
        "weights": weights,
        "teacher": held,
        "activations": kept,
        "loss": float(LOSS_ROWS * LOSS_COPIES * number * words),
        "gathered": gathered,
    }


OVERHEAD = 1.5e9
"""Bytes of a device besides weights, keys and values: the libraries' own and what a pass needs."""


def needs_shards(training: Training, cluster: Cluster) -> bool:
    """Whether whole copies do not fit on each of several ranks, and shards are possible."""
    if cluster.ranks == 1 or training.adapter != "none":
        return False
    return not fits(OVERHEAD + sum(memory_of(training, cluster).values()), cluster)


def fits(needed: float, cluster: Cluster) -> bool:
    """Whether a rank's memory holds it."""
    return needed <= USABLE * cluster.accelerator.memory


def step_of(training: Training, cluster: Cluster, *, sharded: bool = False) -> Phase:
    """One optimizer step, as one rank sees it."""
    number, ranks = cluster.accelerator.number_bytes, cluster.ranks
    student, teacher = training.student, training.teacher
    tokens = training.step_tokens / ranks
    micros = tokens / training.micro(ranks)
    forward = student.forward(tokens, training.seen, training.scored * tokens)
    # Backward is twice the forward pass; frozen weights need the half of it that goes through them.
    passes = (3.0 if training.adapter == "none" else 2.0) + training.checkpointed
    flops = passes * forward
    reads = (2.0 + training.checkpointed) * number * student.weights
    if teacher is not None and training.teacher_held == "live":
        flops += teacher.forward(tokens, training.seen, training.scored * tokens)
    elif teacher is not None and training.teacher_held == "output":
        flops += 2.0 * training.scored * tokens * teacher.output_weights
    reads += teacher_bytes(training, number)
    mine = training.trained / (ranks if sharded or training.zero else 1)
    kept = 2.0 * tokens * student.kept_bytes(checkpointed=training.checkpointed)
    return Phase(
        "training",
        flops=flops,
        traffic=micros * reads + kept + OPTIMIZER_TRAFFIC * mine,
        sent=sent_of(training, cluster, sharded=sharded),
        storage=training.step_tokens / cluster.hosts * training.signal_bytes,
    )


def sent_of(training: Training, cluster: Cluster, *, sharded: bool = False) -> float:
    """Bytes that a rank sends in one optimizer step."""
    ranks = cluster.ranks
    others = (ranks - 1) / ranks
    gradients = GRADIENT * training.trained
    micros = training.step_tokens / ranks / training.micro(ranks)
    if sharded:
        gathers = (2.0 + training.checkpointed) * WEIGHT * training.student.weights
        return others * micros * (gathers + gradients)
    if training.zero == 2:
        return others * (micros * gradients + WEIGHT * training.student.weights)
    return 2.0 * others * gradients
