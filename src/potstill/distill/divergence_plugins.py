"""Divergences by plug-ins (`potstill.divergences`), each tried on a few numbers before it is used.

In: a name such as plugin:mine. Out: a function as those of `losses.py`. Knows nothing of models,
masks or batches; preflight then compares it within the whole loss, as it does ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

from potstill.core.plugins import PREFIX, Loaded, described, load

if TYPE_CHECKING:
    from torch import Tensor

GROUP = "potstill.divergences"
ROWS, WORDS = 6, 9
STEP = 1e-3
"""How far the student is moved against the gradient; small beside logits of about 1."""
ROUNDING = 1e-5


class DivergencePlugin(Protocol):
    """What an entry point of `potstill.divergences` names. It is imported where a run is planned,
    too: import torch inside of `rows`."""

    version: str
    """Raise it when values would differ: the stage then runs again."""

    def rows(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        """Student's and teacher's logarithms of probabilities [N, V], [N, V] -> the divergence of
        each row [N], without T^2: at least 0, and 0 where both are the same. Its gradient goes to
        log_q. V is the vocabulary, or the words of a top-k signal and one for all others."""
        ...


def divergence_facts(names: Iterable[str]) -> dict[str, str]:
    """The identities of those names that are plug-ins. Light. Errors: PluginError."""
    return {f"divergence {name}": _loaded(name).identity for name in names if _is_ours(name)}


def plugin_rows(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The plug-in's function, after it was tried. Errors: PluginError."""
    loaded = _loaded(name)
    rows: Callable[[Tensor, Tensor], Tensor] = loaded.object.rows
    if name not in _tried:
        _try(loaded, rows)
        _tried.add(name)
    return rows


_tried: set[str] = set()


def _is_ours(name: str) -> bool:
    return name.startswith(PREFIX)


def _loaded(name: str) -> Loaded:
    return load(GROUP, name.removeprefix(PREFIX), ("rows",))


def _try(loaded: Loaded, rows: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Errors: PluginError for a function that is no divergence, or whose gradient misleads."""
    import torch

    draw = torch.Generator().manual_seed(1)
    logits, teacher = torch.randn(2, ROWS, WORDS, generator=draw).unbind(0)
    leaf = logits.clone().requires_grad_()
    log_q, log_p = leaf.log_softmax(-1), teacher.log_softmax(-1)
    before = log_p.clone(), log_q.detach().clone()
    try:
        values = rows(log_q, log_p)
        same = rows(log_p, log_p)
        shape = tuple(values.shape)
        plain = torch.equal(log_p, before[0]) and torch.equal(log_q.detach(), before[1])
        (gradient,) = torch.autograd.grad(values.sum(), leaf)
        moved = (logits - STEP * gradient / gradient.norm(dim=-1, keepdim=True)).log_softmax(-1)
        after = rows(moved, log_p)
    except Exception as error:
        raise loaded.broken(f"cannot be used as a divergence: {described(error)}") from error
    if shape != (ROWS,):
        raise loaded.broken(f"gives a shape {list(shape)} of [{ROWS}, {WORDS}], not [{ROWS}]")
    if not plain:
        raise loaded.broken("changes the probabilities that it is given")
    if not (torch.isfinite(values).all() and torch.isfinite(gradient).all()):
        raise loaded.broken("gives values or gradients that are not finite numbers")
    if bool((values <= ROUNDING).any()) or bool((same.abs() > ROUNDING).any()):
        raise loaded.broken(
            "is no divergence: it must be 0 where student and teacher are the same, and above 0 "
            "elsewhere"
        )
    if bool((gradient.norm(dim=-1) <= ROUNDING).any()) or bool((after >= values).any()):
        raise loaded.broken(
            "has a gradient that does not lead to smaller values of it, so it would teach nothing "
            "or the wrong thing"
        )
