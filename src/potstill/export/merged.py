"""The hop from an adapter on its base to the merged student that was saved.

In: the kept adapter's folder, its base's, the student, test rows. Out: an entry of the chain. When
the adapter was merged its logits were compared on one row; this is the saved model, rounded to its
own type, on the test rows. Knows nothing of files in other formats.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from potstill.core.scoring import bootstrap_ratio
from potstill.export.chain import Allowance, judged
from potstill.export.parity import Row
from potstill.models.adapter_sets import AdapterSet
from potstill.models.adapters import logits_of


def merge_hop(
    base: Path,
    adapter: Path,
    student: Any,
    rows: Sequence[Row],
    allowance: Allowance,
    seed: int,
    resamples: int,
    level: float,
) -> dict[str, Any]:
    """KL(adapter on its base || student), and their agreement. Errors: ModelError if beyond."""
    attached = AdapterSet(base, {"kept": adapter}).use("kept")
    kls, same, tokens = [], [], []
    for row in rows:
        before, after = (
            torch.log_softmax(logits_of(model, row.ids[:-1]), dim=-1)
            for model in (attached, student)
        )
        kls.append(float(torch.linalg.vecdot(before.exp(), before - after).sum()))
        same.append(float((before.argmax(-1) == after.argmax(-1)).sum()))
        tokens.append(float(len(before)))
    hop = {
        "from": "adapter",
        "to": "merged",
        "compared_with": "the adapter on its base",
        "prompts": len(rows),
        "tokens": int(sum(tokens)),
        "kl": bootstrap_ratio(kls, tokens, seed, resamples, level).as_dict(),
        "agreement": bootstrap_ratio(same, tokens, seed, resamples, level).as_dict(),
    }
    return judged(hop, allowance)
