"""A student whose weights, gradients and moments lie in parts over the processes (FSDP2).

In: a student that is ready to be trained, an open process group. Out: the same student, each layer
whole only while it computes; and whole again when it is trained. What is written of it, weights and
optimizer, is what one process writes, so that any number of processes goes on from it.
Knows nothing of losses.

PyTorch's `fully_shard` (Zhao et al. 2023, arXiv:2304.11277) averages gradients over processes.
Here they are added up: each process has divided by the active tokens of the whole step, as in
`ranks.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from potstill.distill.ranks import Ranks
from potstill.models.body import body_of, layers_of
from potstill.models.device import device_here

Found = TypeVar("Found")
WEIGHTS, OPTIMIZER, SCHEDULER = "model.safetensors", "optimizer.pt", "scheduler.pt"


class Sharded:
    """A student in parts: `model`, which was changed in place."""

    def __init__(self, model: Any, ranks: Ranks) -> None:
        self.model, self.ranks = model, ranks
        self._outline = outline_of(model)
        mesh = init_device_mesh(device_here().type, (ranks.count,))
        for layer in layers_of(body_of(model)):
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh, reshard_after_forward=False)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)  # else gloo lacks what it needs
        self._act: Callable[[], Any] = lambda: None
        model.within = lambda: self._act()
        register_fsdp_forward_method(model, "within")

    def within(self, act: Callable[[], Found]) -> Found:
        """What `act` returns, which may use the student's parts and weights as if it were whole.

        Every process must call it as often as the others, for layers are put together by all.
        """
        self._act = act
        found: Found = self.model.within()
        if not torch.is_grad_enabled():  # else the backward pass does it
            self.model.reshard()
        return found

    def save(self, folder: Path) -> None:
        """The weights, whole, in one file; all processes call it."""
        tensors = {name: _whole(one.detach()) for name, one in self.model.named_parameters()}
        if self.ranks.leads:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(
                {name: one.cpu().contiguous() for name, one in tensors.items()}, folder / WEIGHTS
            )

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Take the weights from where `save` left them."""
        tensors = load_file(folder / WEIGHTS)
        for name, one in self.model.named_parameters():
            one.to_local().copy_(_part(tensors[name], one).to_local())

    def save_optimizer(self, optimizer: Any, scheduler: Any, folder: Path) -> None:
        """Both states as one process has them; all processes call it."""
        state = _mapped(optimizer.state_dict(), lambda _, one: _whole(one).cpu())
        if self.ranks.leads:
            torch.save(state, folder / OPTIMIZER)
            torch.save(scheduler.state_dict(), folder / SCHEDULER)

    def load_optimizer(self, optimizer: Any, scheduler: Any, folder: Path) -> None:
        """Take each process's parts of what `save_optimizer` left."""
        state = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True)
        learning = [one for group in optimizer.param_groups for one in group["params"]]
        optimizer.load_state_dict(
            _mapped(
                state,
                lambda number, one: _part(one, learning[number]) if one.ndim else one,
            )
        )
        scheduler.load_state_dict(torch.load(folder / SCHEDULER, weights_only=True))

    def whole(self) -> Any:
        """The student as a plain model again, in every process."""
        tensors = {name: _whole(one.detach()) for name, one in self.model.named_parameters()}
        return filled(self._outline, tensors)


def outline_of(model: Any) -> Any:
    """The same model without numbers, to be filled when it is trained."""
    hollow = {
        id(one): torch.nn.Parameter(one.detach().to("meta"), one.requires_grad)
        for one in model.parameters()
    }
    return copy.deepcopy(model, hollow)


def filled(outline: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The outline with its numbers, which are all there; weights that are one stay one."""
    _, unknown = outline.load_state_dict(tensors, strict=False, assign=True)
    outline.tie_weights()
    assert not unknown, unknown
    left = [name for name, one in outline.named_parameters() if one.is_meta]
    assert not left, left
    return outline


def whole_norm(norm: Any) -> Tensor:
    """A norm over parts as a plain number in every process."""
    found: Tensor = norm.full_tensor() if isinstance(norm, DTensor) else norm
    return found


def _whole(tensor: Tensor) -> Tensor:
    found: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return found


def _part(tensor: Tensor, like: Any) -> DTensor:
    """This process's part of a tensor that all have."""
    mesh = like.device_mesh
    return distribute_tensor(tensor.to(mesh.device_type), mesh, like.placements, src_data_rank=None)


def _mapped(state: Mapping[str, Any], change: Callable[[int, Tensor], Tensor]) -> dict[str, Any]:
    """An optimizer's state with other tensors. change(parameter's number, tensor)."""
    moments = {
        number: {
            name: change(number, value) if isinstance(value, Tensor) else value
            for name, value in found.items()
        }
        for number, found in state["state"].items()
    }
    return {**state, "state": moments}
