"""The full batch's gradient with the activations of a part of it (GradCache, Gao et al. 2021, arXiv 2101.06983).

A contrastive loss needs all rows at once, but a row's embedding needs no other row: the batch is encoded part by part
without keeping activations, the loss is taken on all rows, and in the backward pass each part is encoded once more, with
the random numbers of the first time, to receive its share of the gradient. Unlike accumulation, this is exact: every row
still meets every other. It costs a second forward pass.

BatchNorm is the exception, since it makes rows depend on those they are encoded with.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Norm = Literal["refuse", "freeze", "approximate"]
"""What to do about BatchNorm: nothing, which is refused; use its running statistics, which is exact; or let every part be
normalised by its own statistics, which is another gradient than the batch's."""

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def forward_in_chunks(
    encode: Callable[[Tensor], Tensor], rows: Tensor, parts: int, *, module: nn.Module, norm: Norm
) -> Tensor:
    """encode(rows), with the activations of one part of the rows at a time.

    Args:
        encode: (N, ...) -> (N, D), each row by itself.
        rows: (N, ...).
        parts: how many parts, of as equal a size as can be.
        module: holds the BatchNorm layers that `encode` runs through.
        norm: what to do about them; "refuse" means that there are none.
    """
    norms = batch_norms(module)

    @contextmanager
    def first() -> Iterator[None]:
        with _frozen(norms) if norm == "freeze" else nullcontext():
            yield

    @contextmanager
    def again() -> Iterator[None]:
        # What a layer has learned of its statistics it learned the first time.
        with _frozen(norms) if norm == "freeze" else _not_counting(norms):
            yield

    def contexts() -> tuple[Any, Any]:
        return first(), again()

    made = [checkpoint(encode, part, use_reentrant=False, context_fn=contexts) for part in rows.chunk(parts)]
    return torch.cat(made)


def batch_norms(module: nn.Module) -> list[Any]:
    """Layers that normalise by the statistics of the batch they are given."""
    return [part for part in module.modules() if isinstance(part, _BATCH_NORMS)]


@contextmanager
def _frozen(norms: list[Any]) -> Iterator[None]:
    modes = [norm.training for norm in norms]
    for norm in norms:
        norm.training = False
    try:
        yield
    finally:
        for norm, mode in zip(norms, modes, strict=True):
            norm.training = mode


@contextmanager
def _not_counting(norms: list[Any]) -> Iterator[None]:
    with ExitStack() as stack:
        for norm in norms:
            stack.enter_context(_one_not_counting(norm))
        yield


@contextmanager
def _one_not_counting(norm: Any) -> Iterator[None]:
    buffers = {name: value.clone() for name, value in norm.named_buffers(recurse=False)}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in buffers.items():
                getattr(norm, name).copy_(value)
