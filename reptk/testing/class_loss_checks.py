"""What holds for losses with learned vectors of each class (proxies, centers) alone: ids are labels, negative for none."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

NUM_UNLABELED = 3


def supplied_arguments(factory: Any, *, num_classes: int, embedding_dim: int) -> dict[str, int]:
    """Return those of the two arguments that a loss's factory takes; none for a loss that compares rows with rows."""
    if isinstance(factory, nn.Module):
        return {}
    supplied = {"num_classes": num_classes, "embedding_dim": embedding_dim}
    parameters = inspect.signature(factory).parameters
    return {name: value for name, value in supplied.items() if name in parameters}


def unlabeled_rows_count(loss: Callable[[Tensor, Tensor], Tensor], z: Tensor, ids: Tensor) -> str | None:
    """Return how rows without a label change a loss; None if they do not."""
    partly_labeled = ids.clone()
    partly_labeled[:NUM_UNLABELED] = -1 - torch.arange(NUM_UNLABELED)
    z = z.detach().clone().requires_grad_()
    value = loss(z, partly_labeled)
    expected = loss(z[NUM_UNLABELED:], ids[NUM_UNLABELED:])
    if not torch.allclose(value.double(), expected.double(), rtol=1e-7, atol=1e-7):
        return f"with {NUM_UNLABELED} of them it gave {value.item():.9g} instead of {expected.item():.9g}"
    (gradient,) = torch.autograd.grad(value, z)
    if gradient[:NUM_UNLABELED].any():
        return "they have a gradient"
    return None


def not_zero_without_labels(loss: nn.Module, z: Tensor, ids: Tensor) -> str | None:
    """Return what a batch without labels gives; None if that is 0, with gradients of 0."""
    z = z.float().detach().clone().requires_grad_()
    value = loss(z, -1 - torch.arange(len(z)))
    if value != 0:
        return f"it gave {value.item():.6g}"
    if not value.requires_grad:
        return "it is detached"
    names = ["z", *(name for name, _ in loss.named_parameters())]
    gradients = torch.autograd.grad(value, [z, *loss.parameters()], allow_unused=True)
    for name, gradient in zip(names, gradients, strict=True):
        if gradient is None:
            return f"{name} gets no gradient"
        # Also False for NaN.
        if not (gradient == 0).all():
            return f"the gradient of {name} is not zero"
    return None
