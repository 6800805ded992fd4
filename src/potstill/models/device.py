"""Where a model computes.

In: nothing. Out: the GPU, if there is one; else the processor. Of several GPUs a process has the
one that its launcher made the current one. Knows nothing of models.
"""

from __future__ import annotations

import torch


def device_here() -> torch.device:
    """CUDA's current device, or the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
