"""Optimizer and learning-rate schedule, from timm's factories."""

from collections.abc import Iterable
from typing import Any

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import CosineLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn

from reptk.config.registry import unknown
from reptk.core.errors import UsageError

_TIMM = {"sgd": "momentum", "nesterov": "sgd"}
_FUSED = ("adam", "adamw", "nesterov", "sgd")
"""Torch's own, which update all weights in one pass."""


def optimizer(
    modules: nn.Module, *, name: str, lr: float, weight_decay: float, momentum: float = 0.9, decay_all: bool = False
) -> torch.optim.Optimizer:
    """An optimizer by timm's name over the trainable parameters; norms and biases get weight decay only if `decay_all`.

    "sgd" is plain SGD with momentum, as papers mean it, and "nesterov" its Nesterov form: timm's own "sgd" is the latter.

    Raises:
        UsageError: unknown name.
    """
    known = ["nesterov", *list_optimizers()]
    if name not in known:
        raise UsageError(unknown("optimizer", name, known))
    decayed, plain = [], []
    for parameter in _trainable(modules):
        (decayed if decay_all or parameter.ndim > 1 else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    options = {"fused": True} if name in _FUSED else {}
    try:
        return create_optimizer_v2(
            [group for group in groups if group["params"]],
            opt=_TIMM.get(name, name),
            lr=lr,
            momentum=momentum,
            **options,
        )
    except Exception as cause:
        raise UsageError(f"optimizer {name!r} cannot be built here: {cause or type(cause).__name__}") from cause


def schedule(
    optimizer: torch.optim.Optimizer,
    *,
    kind: str,
    steps: int,
    warmup_steps: int,
    warmup_lr: float,
    final_lr: float,
) -> Scheduler:
    """The learning rate as a function of the step: `.step_update(step)` before each one.

    `kind`: "cosine" from lr to `final_lr` over the steps after the warm-up, or "constant". The warm-up is linear.
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


def _trainable(module: nn.Module) -> Iterable[nn.Parameter]:
    return (parameter for parameter in module.parameters() if parameter.requires_grad)


def learning_rate(optimizer: torch.optim.Optimizer) -> float:
    """The learning rate of the next step."""
    group: dict[str, Any] = optimizer.param_groups[0]
    return group["lr"]
