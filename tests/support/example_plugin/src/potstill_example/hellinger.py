"""The squared Hellinger distance, 1 - sum over words of sqrt(p q): between 0 and 1 per token."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class Hellinger:
    """A divergence without parameters. Its methods of tensors import nothing."""

    version = "1"

    def rows(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        """1 - sum sqrt(p q) of each row: [N, V], [N, V] -> [N]. As half the sum of squared
        differences of the roots, which does not cancel where p and q are nearly the same."""
        roots = (0.5 * log_p).exp() - (0.5 * log_q).exp()
        return 0.5 * roots.square().sum(-1)


DIVERGENCE = Hellinger()
