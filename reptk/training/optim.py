"""Optimizers by timm's names, and the schedule of the learning rate."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers

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
    fused: bool = True,
) -> torch.optim.Optimizer:
    """Create an optimizer by timm's name; "sgd" is SGD with momentum, "nesterov" its Nesterov form.

    Args:
        parameter_groups: `Method.parameter_groups()`. A group without `weight_decay` is split: norms and biases (tensors of
            at most one dimension) and `undecayed` get none, the others `weight_decay`.
        decay_all: decay all parameters.
        undecayed: further parameters without weight decay; see `Encoder.undecayed_parameters`.
        fused: use torch's fused kernels where there are any. Not with a scaled loss: if the first step is skipped, fused SGD
            leaves its momentum uninitialized (torch 2.14).

    Raises:
        UsageError: unknown name, an optimizer that needs second derivatives, or timm refuses the options.
    """
    known = ["nesterov", *list_optimizers()]
    if name not in known:
        raise UsageError(unknown("optimizer", name, known))
    timm_name = _TIMM_NAMES.get(name, name)
    if get_optimizer_info(timm_name).second_order:
        raise UsageError(f"optimizer {name!r} needs second derivatives, which the training loop does not compute")
    undecayed_ids = set() if decay_all else {id(parameter) for parameter in undecayed}
    groups = []
    for group in parameter_groups:
        groups += _split_by_decay(group, weight_decay, decay_all, undecayed_ids)
    options = {}
    if fused and name in _WITH_FUSED_KERNEL:
        options["fused"] = True
    try:
        return create_optimizer_v2(groups, opt=timm_name, lr=lr, momentum=momentum, **options)
    except Exception as cause:  # timm's optimizers raise various types for options that they refuse
        raise UsageError(f"optimizer {name!r} cannot be built: {cause or type(cause).__name__}") from cause


def scale_by_layer(
    parameter_groups: Iterable[Mapping[str, Any]], scales: Iterable[tuple[torch.nn.Parameter, float]]
) -> list[dict[str, Any]]:
    """Split groups so that each has one factor on the learning rate, `lr_scale`, for all of its parameters.

    Args:
        parameter_groups: `Method.parameter_groups()`. A group's `lr_scale` is multiplied with that of the layer.
        scales: parameters with the factors of their layers; the others have 1.

    Returns:
        Groups in the order of the first parameter with each factor. Parameters that require no gradient are left out.
    """
    scale_of = {id(parameter): scale for parameter, scale in scales}
    groups = []
    for group in parameter_groups:
        by_scale: dict[float, list[torch.nn.Parameter]] = {}
        for parameter in group["params"]:
            if parameter.requires_grad:
                by_scale.setdefault(scale_of.get(id(parameter), 1.0), []).append(parameter)
        for scale, parameters in by_scale.items():
            groups.append({**group, "params": parameters, "lr_scale": group.get("lr_scale", 1.0) * scale})
    return groups


def with_groups_of_loss(
    parameter_groups: Iterable[Mapping[str, Any]], loss_groups: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Move parameters of a loss from the groups of its method into groups of their own.

    Args:
        parameter_groups: `Method.parameter_groups()`.
        loss_groups: `Loss.parameter_groups()`. Of these, what the method does not train is left out.

    Returns:
        The groups of the method, then those of the loss; without empty ones.
    """
    method_groups = [dict(group) for group in parameter_groups]
    loss_groups = [dict(group) for group in loss_groups]
    is_trained = {id(parameter) for group in method_groups for parameter in group["params"]}
    is_moved = set()
    for group in loss_groups:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) in is_trained]
        is_moved |= set(map(id, group["params"]))
    for group in method_groups:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in is_moved]
    return [group for group in (*method_groups, *loss_groups) if group["params"]]


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


class Schedule:
    """The learning rate as a function of the number of the step: a linear warm-up, then half a cosine, steps, or no change.

    Step i of W warm-up steps has `warmup_lr + (lr - warmup_lr) * (i + 1) / W`: more than 0 in the first step, `lr` in the last.
    From there, or from the first step if there is no warm-up, a cosine falls to `final_lr`, which the last step of the
    run has exactly. A run of a single step has `lr`.

    Args:
        optimizer: whose learning rate is scheduled; it has `lr` now. A group's `lr_scale` is a factor on the scheduled rate; a
            group with `constant_lr` has `lr` in every step.
        kind: "cosine"; "constant": `lr` after the warm-up; or "multistep": `lr` times `gamma` for every milestone that is
            passed, as by `torch.optim.lr_scheduler.MultiStepLR`.
        steps: number of steps, with the warm-up.
        warmup_steps: W, of which at most `steps - 1` are done, so that the last step belongs to the cosine.
        warmup_lr: learning rate from which the warm-up rises.
        final_lr: learning rate of the last step of the cosine.
        milestones: of "multistep", as shares of all steps: the step after so many has the next rate.
        gamma: of "multistep".
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        kind: str,
        steps: int,
        warmup_steps: int,
        warmup_lr: float,
        final_lr: float,
        milestones: Sequence[float] = (),
        gamma: float = 0.1,
    ) -> None:
        self.optimizer = optimizer
        self.kind = kind
        self.steps = steps
        self.warmup_steps = min(warmup_steps, steps - 1)
        self.warmup_lr = warmup_lr
        self.final_lr = final_lr
        # Rounded: 0.6 of 5 steps is a little more than 3 in floating point on some machines.
        self.milestone_steps = [round(share * steps) for share in milestones]
        self.gamma = gamma
        self._peaks = [group["lr"] for group in optimizer.param_groups]

    def set_step(self, step: int) -> None:
        """Set the learning rate of a step, counted from 0. A resumed run does not need to replay the steps before."""
        for group, peak in zip(self.optimizer.param_groups, self._peaks, strict=True):
            rate = self._rate(step, peak)
            if group.get("constant_lr"):
                rate = peak
            group["lr"] = rate * group.get("lr_scale", 1.0)

    def _rate(self, step: int, peak: float) -> float:
        if step < self.warmup_steps:
            return self.warmup_lr + (peak - self.warmup_lr) * (step + 1) / self.warmup_steps
        if self.kind == "constant":
            return peak
        if self.kind == "multistep":
            num_passed = sum(step >= milestone for milestone in self.milestone_steps)
            return peak * self.gamma**num_passed
        peak_step = max(0, self.warmup_steps - 1)
        cosine_steps = self.steps - 1 - peak_step
        if cosine_steps == 0:
            return peak
        progress = (step - peak_step) / cosine_steps
        return self.final_lr + (peak - self.final_lr) * (1 + math.cos(math.pi * progress)) / 2


def learning_rate(optimizer: torch.optim.Optimizer) -> float:
    """The scheduled learning rate as it is now, without the factor `lr_scale` that a parameter group may have."""
    group = optimizer.param_groups[0]
    return group["lr"] / group.get("lr_scale", 1.0)


def check_state_of_fused(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Check the saved state of a fused optimizer, whose kernels trust the shapes: others could overwrite memory.

    Args:
        optimizer: that will load the state; nothing is checked unless it is fused.
        saved: its state dict.

    Raises:
        ValueError: a tensor has another shape than its weight, and is no count of steps; or there is something else.
    """
    if not optimizer.defaults.get("fused"):
        return
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for number, entries in saved["state"].items():
        for name, value in entries.items():
            if value is None:
                continue  # the momentum of SGD before its first step
            expected = torch.Size() if name == "step" else weights[number].shape
            is_dense = value.is_floating_point() and value.layout is torch.strided
            if not is_dense or value.shape != expected:
                raise ValueError(f"the state {name} of the optimizer has another shape than its weight")
