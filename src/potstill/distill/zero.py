"""A student in parts over the processes by DeepSpeed (ZeRO), its moments beside the GPU if wished.

In: a student that is ready to be trained, an open process group, DeepSpeed's settings. Out: the
same student, trained by DeepSpeed's engine; and whole again when it is trained. What is written of
it is what `sharding.py` writes, so that training goes on with or without DeepSpeed, and with any
number of processes; DeepSpeed's own checkpoints, which are pickles, are neither written nor read.
Knows nothing of losses.

ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054) averages gradients over processes. Here they are
added up, so each part of the loss is multiplied by the number of processes: each has divided by the
active tokens of the whole step, as in `ranks.py`.
"""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from potstill.core.extras import require
from potstill.distill.ranks import Ranks
from potstill.distill.sharding import OPTIMIZER, SCHEDULER, WEIGHTS, filled, outline_of

Found = TypeVar("Found")
MOMENTS = ("exp_avg", "exp_avg_sq")
"""Of AdamW."""
BUCKETS, BUCKET_NUMBERS = ("reduce_bucket_size", "allgather_bucket_size"), 50_000_000
"""Numbers of one message, which has memory of its own; a larger weight goes by itself."""


class ZeroSharded:
    """A student whose moments, gradients and weights DeepSpeed holds in parts; `model` is it."""

    def __init__(self, model: Any, ranks: Ranks, settings: Mapping[str, Any]) -> None:
        """settings: DeepSpeed's, complete. Errors: MissingExtraError without DeepSpeed."""
        self._deepspeed = _deepspeed()
        self.model, self.ranks, self.settings = model, ranks, copy.deepcopy(dict(settings))
        for bucket in BUCKETS:  # else 2 GB each, whatever the student's size
            self.settings["zero_optimization"].setdefault(bucket, BUCKET_NUMBERS)
        self._outline = outline_of(model)
        self._root = _Root(model)
        self._engine: Any = None
        self._linear = functional.linear
        self._learning: list[nn.Parameter] = []
        self._groups: list[dict[str, Any]] = []

    @property
    def stage(self) -> int:
        """Of ZeRO: 1 divides moments, 2 gradients too, 3 the weights as well."""
        return int(self.settings["zero_optimization"]["stage"])

    def start(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Hand student and optimizer to DeepSpeed; what is left to set of the optimizer."""
        self._groups = optimizer.state_dict()["param_groups"]
        self._learning = [one for group in optimizer.param_groups for one in group["params"]]
        self._linear = functional.linear  # ZeRO-3 puts another in its place, for good
        with redirect_stdout(sys.stderr):  # it says what it has built
            self._engine, *_ = self._deepspeed.initialize(
                model=self._root,
                optimizer=optimizer,
                config=self.settings,
                dist_init_required=False,
            )
        if self.stage == 3:
            # The loss reads the output layer's weights without calling the layer.
            head = self.model.get_output_embeddings().weight
            self._deepspeed.zero.register_external_parameter(self._root, head)
        self._make_moments()
        return _Rates(optimizer)

    def within(self, act: Callable[[], Found]) -> Found:
        """What `act` returns, which may use the student's parts and weights as if it were whole.

        Every process must call it as often as the others, for weights are put together by all.
        """
        self._root.act = act
        self._root.train(self.model.training)
        found: Found = self._root() if self._engine is None else self._engine()
        return found

    def backward(self, part: Tensor, *, last: bool) -> None:
        """Add a part's gradients; the last one of a step lets `step` follow."""
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(part * self.ranks.count)

    def step(self) -> float:
        """Clip and take the optimizer's step; the gradient's norm before it was clipped."""
        self._engine.step()
        return float(self._engine.get_global_grad_norm())

    def save(self, folder: Path) -> None:
        """The weights, whole, in one file; all processes call it."""
        tensors = self._tensors("cpu" if self.ranks.leads else "meta")
        if self.ranks.leads:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(tensors, folder / WEIGHTS)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Take the weights from where `save` left them: before the first step, or after the last,
        for DeepSpeed trains on a copy."""
        tensors = load_file(folder / WEIGHTS)
        for name, one in self.model.named_parameters():
            with self._gathered(one, changed=True):
                one.copy_(tensors[name])

    def save_optimizer(self, _: Any, scheduler: Any, folder: Path) -> None:
        """The states as one process without DeepSpeed has them; all processes call it."""
        utils, engine = self._deepspeed.utils, self._engine.optimizer
        step = next(iter(engine.optimizer.state.values()))["step"]
        moments = {}
        for number, one in enumerate(self._learning):
            found = {name: utils.safe_get_full_optimizer_state(one, name) for name in MOMENTS}
            if self.ranks.leads:  # the others only put them together
                moments[number] = {name: value.cpu() for name, value in found.items()}
                moments[number]["step"] = torch.tensor(float(step))
        now = engine.optimizer.param_groups
        groups = [
            {name: was[name] if name == "params" else group[name] for name in was}
            for was, group in zip(self._groups, now, strict=True)
        ]
        if self.ranks.leads:
            torch.save({"state": moments, "param_groups": groups}, folder / OPTIMIZER)
            torch.save(scheduler.state_dict(), folder / SCHEDULER)

    def load_optimizer(self, _: Any, scheduler: Any, folder: Path) -> None:
        """Take each process's parts of what `save_optimizer` left, or what a training without
        DeepSpeed did."""
        state = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True)
        engine = self._engine.optimizer
        for own in engine.optimizer.state.values():
            own["step"].fill_(float(state["state"][0]["step"]))
        for number, one in enumerate(self._learning):
            for name in MOMENTS:
                self._set_moment(one, name, state["state"][number][name])
        for group, was in zip(engine.optimizer.param_groups, state["param_groups"], strict=True):
            group.update({name: value for name, value in was.items() if name != "params"})
        scheduler.load_state_dict(torch.load(folder / SCHEDULER, weights_only=True))

    def whole(self) -> Any:
        """The student as a plain model again, in every process."""
        tensors = self._tensors(self.model.device)
        if self._engine is not None:
            self._end()
        return filled(self._outline, tensors)

    def _end(self) -> None:
        """Leave nothing of DeepSpeed's behind: the next model is trained in the same process."""
        self._engine.destroy()
        functional.linear = self._linear
        stack = self._deepspeed.runtime.zero.parameter_offload.FWD_MODULE_STACK
        stack[:] = [one for one in stack if one is not self._root]  # it would hold on to all of it
        self._root.act = lambda: None
        self._engine, self._learning = None, []

    def _make_moments(self) -> None:
        """What AdamW would make in its first step, so that a checkpoint's can be put there."""
        engine = self._engine.optimizer
        fused = bool(engine.optimizer.defaults.get("fused"))
        if self.stage == 3:
            parts = engine.fp32_partitioned_groups_flat
        else:
            parts = engine.single_partition_of_fp32_groups
        for one in parts:
            step = torch.zeros((), device=one.device if fused else "cpu")
            moments = {name: torch.zeros_like(one) for name in MOMENTS}
            engine.optimizer.state[one] = {"step": step, **moments}
        if self.stage < 3:
            engine._lazy_init_hp_params_optimizer_state()

    def _set_moment(self, parameter: Any, name: str, value: Tensor) -> None:
        utils = self._deepspeed.utils
        if self.stage < 3:
            utils.safe_set_full_optimizer_state(parameter, value, name)
            return
        own = parameter.ds_tensor.ds_numel  # the last process's part is filled up
        padded = nn.functional.pad(value.flatten(), (0, own * self.ranks.count - value.numel()))
        part = padded[own * self.ranks.number : own * (self.ranks.number + 1)]
        utils.safe_set_local_optimizer_state(parameter, part, name)

    def _tensors(self, place: Any) -> dict[str, Tensor]:
        """All weights, whole, one after the other copied to a device; meta: nowhere."""
        found = {}
        for name, one in self.model.named_parameters():
            with self._gathered(one):
                found[name] = one.detach().to(place, copy=True).contiguous()
        return found

    def _gathered(self, parameter: Any, *, changed: bool = False) -> Any:
        """Within it the weight is whole. changed: what the first process does to it is kept."""
        return self._deepspeed.zero.GatheredParameters(
            [parameter],
            modifier_rank=0 if changed else None,
            enabled=hasattr(parameter, "ds_id"),
        )


def _deepspeed() -> Any:
    """DeepSpeed, whose words go to standard error: standard output belongs to data."""
    found = require("deepspeed", "deepspeed", "sharding: deepspeed")
    for handler in logging.getLogger("DeepSpeed").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)
    return found


class _Root(nn.Module):
    """What DeepSpeed takes for the model: its forward pass is whatever is to be computed."""

    def __init__(self, student: Any) -> None:
        super().__init__()
        self.student = student
        self.act: Callable[[], Any] = lambda: None

    def forward(self) -> Any:
        return self.act()


class _Rates(torch.optim.Optimizer):
    """DeepSpeed's optimizer as a scheduler sees it: rates are set here, its steps are the
    engine's."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.param_groups, self.defaults = optimizer.param_groups, optimizer.defaults

    def step(self, closure: Any = None) -> Any:
        """Nothing: `ZeroSharded.step` has taken it."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Nothing: the engine does it with its step."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing: `ZeroSharded.save_optimizer` has it."""
        return {"state": {}, "param_groups": []}

    def load_state_dict(self, state_dict: Any) -> None:
        """Nothing: `ZeroSharded.load_optimizer` does it."""
