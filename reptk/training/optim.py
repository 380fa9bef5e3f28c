"""Optimizer and learning-rate schedule, from timm's factories."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import CosineLRScheduler
from timm.scheduler.scheduler import Scheduler

from reptk.config.registry import unknown
from reptk.core.errors import UsageError

_TIMM_NAMES = {"sgd": "momentum", "nesterov": "sgd"}
"""Our names of timm's optimizers that differ: timm's "sgd" has Nesterov momentum, which papers do not mean by SGD."""

_WITH_FUSED_KERNEL = ("adam", "adamw", "nesterov", "sgd")
"""Optimizers of torch that can update all weights in one kernel."""


def create_optimizer(
    parameter_groups: Iterable[Mapping[str, Any]],
    *,
    name: str,
    lr: float,
    weight_decay: float,
    momentum: float = 0.9,
    decay_all: bool = False,
    undecayed: Iterable[torch.nn.Parameter] = (),
) -> torch.optim.Optimizer:
    """Create an optimizer by timm's name; "sgd" is SGD with momentum, "nesterov" its Nesterov form.

    Args:
        parameter_groups: `Method.parameter_groups()`. A group without `weight_decay` is split: norms and biases (tensors of
            at most one dimension) and `undecayed` get none, the others `weight_decay`.
        decay_all: decay all parameters.
        undecayed: further parameters without weight decay; see `Encoder.undecayed_parameters`.

    Raises:
        UsageError: unknown name, or timm refuses the options.
    """
    known = ["nesterov", *list_optimizers()]
    if name not in known:
        raise UsageError(unknown("optimizer", name, known))
    undecayed_ids = set() if decay_all else {id(parameter) for parameter in undecayed}
    groups = []
    for group in parameter_groups:
        groups += _split_by_decay(group, weight_decay, decay_all, undecayed_ids)
    options = {}
    if name in _WITH_FUSED_KERNEL:
        options["fused"] = True
    try:
        return create_optimizer_v2(groups, opt=_TIMM_NAMES.get(name, name), lr=lr, momentum=momentum, **options)
    except Exception as cause:  # timm's optimizers raise various types for options that they refuse
        raise UsageError(f"optimizer {name!r} cannot be built: {cause or type(cause).__name__}") from cause


def _split_by_decay(
    group: Mapping[str, Any], weight_decay: float, decay_all: bool, undecayed_ids: set[int]
) -> list[dict[str, Any]]:
    if "weight_decay" in group:
        # The method has decided.
        return [dict(group)]
    decayed, not_decayed = [], []
    for parameter in group["params"]:
        if decay_all or (parameter.ndim > 1 and id(parameter) not in undecayed_ids):
            decayed.append(parameter)
        else:
            not_decayed.append(parameter)
    split = [
        {**group, "params": decayed, "weight_decay": weight_decay},
        {**group, "params": not_decayed, "weight_decay": 0.0},
    ]
    return [part for part in split if part["params"]]


def create_scheduler(
    optimizer: torch.optim.Optimizer,
    *,
    kind: str,
    steps: int,
    warmup_steps: int,
    warmup_lr: float,
    final_lr: float,
) -> Scheduler:
    """Create the schedule of the learning rate; call `.step_update(step)` before each step.

    Args:
        optimizer: whose learning rate is scheduled.
        kind: "cosine": from lr to `final_lr` over the steps after the warm-up; "constant": lr. The warm-up is linear.
        steps: number of steps, with the warm-up.
        warmup_steps: number of steps of the warm-up.
        warmup_lr: learning rate of the first step of the warm-up.
        final_lr: learning rate at the end of the cosine.
    """
    lr = optimizer.param_groups[0]["lr"]
    lr_min = final_lr
    if kind == "constant":
        lr_min = lr  # a cosine from lr to lr
    return CosineLRScheduler(
        optimizer,
        t_initial=max(2, steps - warmup_steps),  # timm warns of a cosine over a single step
        lr_min=lr_min,
        warmup_t=warmup_steps,
        warmup_lr_init=warmup_lr,
        warmup_prefix=True,  # the cosine begins after the warm-up, at lr
        t_in_epochs=False,
    )


def learning_rate(optimizer: torch.optim.Optimizer) -> float:
    """The scheduled learning rate as it is now, without the factor `lr_scale` that a parameter group may have."""
    group = optimizer.param_groups[0]
    return group["lr"] / group.get("lr_scale", 1.0)
