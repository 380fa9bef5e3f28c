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
"""timm calls SGD with Nesterov momentum "sgd", and plain SGD with momentum "momentum"; papers mean the latter by SGD."""

_WITH_FUSED_KERNEL = ("adam", "adamw", "nesterov", "sgd")
"""torch's own optimizers that update all weights in one pass."""


def create_optimizer(
    parameter_groups: Iterable[Mapping[str, Any]],
    *,
    name: str,
    lr: float,
    weight_decay: float,
    momentum: float = 0.9,
    decay_all: bool = False,
) -> torch.optim.Optimizer:
    """Create an optimizer by timm's name; "sgd" is SGD with momentum, "nesterov" its Nesterov form.

    Args:
        parameter_groups: `Method.parameter_groups()`. A group without `weight_decay` is split: norms and biases (tensors of
            at most one dimension) get none, the others `weight_decay`.
        decay_all: decay norms and biases as well.

    Raises:
        UsageError: unknown name, or timm refuses the options.
    """
    known = ["nesterov", *list_optimizers()]
    if name not in known:
        raise UsageError(unknown("optimizer", name, known))
    groups = []
    for group in parameter_groups:
        groups += _split_by_decay(group, weight_decay, decay_all)
    options = {"fused": True} if name in _WITH_FUSED_KERNEL else {}
    try:
        return create_optimizer_v2(groups, opt=_TIMM_NAMES.get(name, name), lr=lr, momentum=momentum, **options)
    except Exception as cause:
        raise UsageError(f"optimizer {name!r} cannot be built here: {cause or type(cause).__name__}") from cause


def _split_by_decay(group: Mapping[str, Any], weight_decay: float, decay_all: bool) -> list[dict[str, Any]]:
    if "weight_decay" in group:
        return [dict(group)]
    decayed, not_decayed = [], []
    for parameter in group["params"]:
        if decay_all or parameter.ndim > 1:
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
    """The learning rate as a function of the step: call `.step_update(step)` before each one.

    Args:
        kind: "cosine": from lr to `final_lr` over the steps after the warm-up; "constant": lr. The warm-up is linear.
    """
    lr = optimizer.param_groups[0]["lr"]
    return CosineLRScheduler(
        optimizer,
        t_initial=max(2, steps - warmup_steps),
        lr_min=final_lr if kind == "cosine" else lr,
        warmup_t=warmup_steps,
        warmup_lr_init=warmup_lr,
        warmup_prefix=True,
        t_in_epochs=False,
    )


def learning_rate(optimizer: torch.optim.Optimizer) -> float:
    """The learning rate of the optimizer's first group, as it is now."""
    return optimizer.param_groups[0]["lr"]
