"""Momentum encoders: copies of a module whose weights are moving averages of the weights of the module."""

import copy
import math
from typing import TypeVar

import torch
from torch import nn

from reptk.methods.protocol import Step

M = TypeVar("M", bound=nn.Module)


def momentum_copy(module: M) -> M:
    """Return a copy of a module that is not trained. Assign it to an attribute of the method, so that checkpoints hold it."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def update_momentum_copy(target: nn.Module, source: nn.Module, momentum: float) -> None:
    """Set every parameter of `target` to momentum * target + (1 - momentum) * source, in place.

    Buffers are left alone: BatchNorm in `target` has running statistics of what passed through it.
    """
    # All parameters in a few kernels. torch's own optimizers rely on these functions, in spite of their underscores.
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), 1 - momentum)


def cosine_momentum(step: Step, base: float) -> float:
    """Return a momentum that rises along half a cosine from `base` in the first step to 1 in the last.

    Source: BYOL, arXiv 2006.07733, section 3.3, whose k/K of step k out of K is here k/(K-1), so that the last step has 1.
    """
    last_step = max(1, step.total - 1)
    progress = step.number / last_step
    return 1 - (1 - base) * (math.cos(math.pi * progress) + 1) / 2
