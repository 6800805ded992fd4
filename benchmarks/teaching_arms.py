"""What the teaching benchmark compares: each way of teaching, from which start, by which teacher.

In: nothing. Out: `ARMS` of equal tokens, `LONG` ones that are to keep their teacher's answers, the
`STARTS` that are cut for them, and the settings of all. Runs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

TOKENS = 60_000
"""Row tokens that every compared training sees."""
LONG_TOKENS = 300_000
"""Of the students that must keep their teacher's answers."""
BASE = "forward KL"
COMMON: dict[str, Any] = {
    "epochs": 1000.0,
    "max_tokens": TOKENS,
    "step_tokens": 1500,
    "micro_tokens": 2048,
    "sequence_tokens": 512,
    "validations": 3,
    "patience": 0,
    "learning_rate": 1e-4,
    "term_gradients": False,
}
CORRECTION = COMMON | {
    "kd_weight": 0.0,
    "ce_weight": 1.0,
    "ce_tokens": "answer",
    "max_tokens": 240_000,
    "validations": 4,
}


@dataclass(frozen=True)
class Arm:
    """One way of teaching: what is set, from which start, by which teacher."""

    settings: dict[str, Any] | None
    start: str = "width 75%"
    teacher: str = "corrected"
    seeds: int | None = None
    """Fewer than asked for, where a result is one of many."""
    written: bool = False
    """Rows that the teacher as it came wrote about the training paragraphs are added."""


KD = {"kd_weight": 1.0, "ce_weight": 0.3}
HIDDEN = KD | {"hidden": {"mse_weight": 0.05, "cosine_weight": 2.0}}
ON_POLICY = {"temperature": 1.0, "max_new_tokens": 24}
ARMS: dict[str, Arm] = {
    "undistilled": Arm(None, seeds=1),
    "fine-tuned": Arm({"kd_weight": 0.0, "ce_weight": 1.0, "ce_tokens": "all"}),
    "fine-tuned on answers": Arm({"kd_weight": 0.0, "ce_weight": 1.0, "ce_tokens": "answer"}),
    BASE: Arm(KD),
    "reverse KL": Arm(KD | {"divergence": "reverse_kl"}),
    "JSD": Arm(KD | {"divergence": "jsd"}),
    "skew KL": Arm(KD | {"divergence": "skew_forward_kl"}),
    "top-k 64 file": Arm(KD | {"signal": "top_k"}),
    "hidden match": Arm(HIDDEN),
    "on-policy 0": Arm(KD | {"signal": "live"}),
    "on-policy 0.5": Arm(KD | {"on_policy": ON_POLICY | {"share": 0.5}}),
    "on-policy 1": Arm({"ce_weight": 0.0, "on_policy": ON_POLICY | {"share": 1.0}}),
    "depth": Arm(KD, start="depth 75%"),
    "depth and width": Arm(KD, start="both 75%"),
    "undistilled depth": Arm(None, start="depth 75%", seeds=1),
    "undistilled depth and width": Arm(None, start="both 75%", seeds=1),
    "uncorrected teacher": Arm(KD, teacher="uncorrected"),
}
FIT = {"fit_tokens": 32_768, "candidates": 1}
STARTS: dict[str, dict[str, Any]] = {
    "depth 75%": FIT | {"parameters_ratio": 0.75, "axes": "depth"},
    "width 75%": FIT | {"parameters_ratio": 0.75, "axes": "width"},
    "both 75%": FIT | {"parameters_ratio": 0.75, "axes": "both"},
    # 832 neurons instead of 768: nearer to three quarters, coarser in the smallest files.
    "width 75%, by 64": FIT | {"parameters_ratio": 0.75, "axes": "width", "round_to": 64},
    "width 50%": FIT | {"parameters_ratio": 0.5, "axes": "width"},
}
ANSWERS = HIDDEN | {"max_tokens": LONG_TOKENS, "validations": 6}
LONG: dict[str, Arm] = {
    "75% long": Arm(ANSWERS, start="width 75%, by 64", written=True),
    "50% long": Arm(ANSWERS, start="width 50%", written=True),
}
WRITING: dict[str, Any] = {
    "pairs_per_chunk": 4,
    "max_tokens": 128,
    "prompt": {
        "ask": "Sentence: {focus}\nAnswer: {answer}",
        "in_place_share": 0.3,
        "student": "{passage}\n\n{question}",
    },
    "context_tokens": 1024,
}
