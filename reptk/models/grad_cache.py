"""The full batch's gradient with the activations of one chunk of it (GradCache, Gao et al. 2021, arXiv 2101.06983).

A contrastive loss needs all embeddings at once, but the embedding of an image does not depend on the other images.
The batch is therefore encoded in chunks without storing activations, and the loss is computed on all embeddings; in the
backward pass each chunk is encoded again, with the random numbers of the first time, and receives its share of the
gradient. Unlike gradient accumulation, this is exact: every embedding is still compared with every other. It costs a
second forward pass.

BatchNorm is the exception, since its statistics make embeddings depend on the other images of the chunk.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Norm = Literal["refuse", "freeze", "approximate"]
"""What to do with BatchNorm layers: `refuse` them; `freeze` them, i.e. use their running statistics, which is exact; or
`approximate` by normalizing each chunk with its own statistics, which gives another gradient than the batch's."""

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def forward_in_chunks(
    encode: Callable[[Tensor], Tensor], inputs: Tensor, chunks: int, *, module: nn.Module, norm: Norm
) -> Tensor:
    """Return encode(inputs), storing the activations of one chunk at a time.

    Args:
        encode: (N, ...) -> (N, D), each row independently of the others.
        inputs: (N, ...).
        chunks: how many chunks, as equal in size as possible.
        module: contains the BatchNorm layers that `encode` uses.
        norm: what to do with them; with "refuse" there must be none.
    """
    layers = batch_norms(module)

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        """The contexts of the first and of the second encoding of a chunk."""
        if norm == "freeze":
            return _in_evaluation_mode(layers), _in_evaluation_mode(layers)
        # The first encoding has updated the running statistics already.
        return nullcontext(), _with_restored_buffers(layers)

    # checkpoint stores the random state of each chunk and restores it for the second encoding. Only the variant that is
    # not reentrant supports contexts.
    encoded = [checkpoint(encode, chunk, use_reentrant=False, context_fn=contexts) for chunk in inputs.chunk(chunks)]
    return torch.cat(encoded)


def batch_norms(module: nn.Module) -> list[nn.Module]:
    """Return the layers of a module that normalize by the statistics of a batch."""
    return [layer for layer in module.modules() if isinstance(layer, BATCH_NORMS)]


def batch_norm_problem(backbone: str, num_backbone: int, num_head: int) -> str:
    """Return the message about BatchNorm layers in micro-batches, of which an encoder has so many."""
    owners = []
    alternatives = []
    if num_backbone:
        owners.append(f"{backbone} has {num_backbone}")
        alternatives.append("a backbone without (resnet50_gn, convnext_tiny, any vit)")
    if num_head:
        owners.append(f"the head has {num_head}")
        alternatives.append("encoder.head_norm=false")
    return (
        f"train.micro_batch_size: {' and '.join(owners)} BatchNorm layers, which would normalize each chunk by its own "
        "statistics, so the gradient would not be that of the batch. Use their running statistics "
        "(train.micro_batch_norm=freeze, exact, for backbones that are trained already), accept the approximation "
        f"(train.micro_batch_norm=approximate), or take {' and '.join(alternatives)}"
    )


@contextmanager
def _in_evaluation_mode(layers: list[nn.Module]) -> Iterator[None]:
    modes = [layer.training for layer in layers]
    for layer in layers:
        layer.training = False
    try:
        yield
    finally:
        for layer, mode in zip(layers, modes, strict=True):
            layer.training = mode


@contextmanager
def _with_restored_buffers(layers: list[nn.Module]) -> Iterator[None]:
    """Restore running means, variances and counters after the block."""
    saved = []
    for layer in layers:
        for name, value in layer.named_buffers(recurse=False):
            saved.append((layer, name, value.clone()))
    try:
        yield
    finally:
        with torch.no_grad():
            for layer, name, value in saved:
                layer.get_buffer(name).copy_(value)
