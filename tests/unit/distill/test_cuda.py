"""The same loss, gradients and training step on an NVIDIA GPU as on the processor."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from potstill.distill import attention
from potstill.distill.batches import RowSet, active_counts, encode_rows
from potstill.distill.objective import Objective
from potstill.distill.signals import LiveTeacher
from potstill.distill.terms import TermLoss, Weights
from potstill.models.surgery import drop_layers
from potstill.records import Example

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="a machine with an NVIDIA GPU runs it"
    ),
]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_loss_and_gradients_are_those_of_the_processor(
    teacher: Any, tokenizer: Any, examples: list[Example], packed: bool, divergence: Any
) -> None:
    rows = encode_rows(examples, tokenizer, 500)[:6]
    objective = Objective(divergence=divergence, hidden={"mse_weight": 0.1})
    families = [(row,) for row in range(len(rows))]
    data = RowSet(rows, families, packed)
    totals = active_counts(rows, objective.active)
    weights = Weights.highest(objective)
    found = {}
    for device in ("cpu", "cuda"):
        ours, theirs = copy.deepcopy(teacher).to(device), copy.deepcopy(teacher).to(device)
        student = drop_layers(ours, [1]).requires_grad_(True)
        if packed:
            attention.use(student)
            attention.use(theirs)
        signal = LiveTeacher(theirs, torch.float32)
        loss = TermLoss(student, signal, objective, vocabulary=len(tokenizer), dtype=torch.float32)
        batch = data.collate(families, objective.active, 0).to(torch.device(device))
        value, _ = loss(rows, batch, weights, totals)
        value.backward()
        gradients = torch.cat([one.grad.flatten().cpu() for one in student.parameters()])
        found[device] = (value.detach().cpu(), gradients)
    torch.testing.assert_close(found["cuda"][0], found["cpu"][0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["cuda"][1], found["cpu"][1], rtol=1e-3, atol=1e-5)
