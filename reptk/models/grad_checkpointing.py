"""Gradient checkpointing by timm: activations inside of a backbone's blocks are computed again in the backward pass.

Chen et al. 2016, arXiv 1604.06174. The second forward pass of a block sees the batch of the first, and would update the running
statistics of BatchNorm once more; `FirstPass` undoes that.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from reptk.core.errors import UsageError
from reptk.models.grad_cache import batch_norms

KEY = "train.grad_checkpointing"


def enable_grad_checkpointing(backbone: nn.Module) -> "FirstPass":
    """Checkpoint the blocks of a backbone, as `set_grad_checkpointing` of timm does.

    Args:
        backbone: of timm, changed in place.

    Returns:
        A context for the forward pass, outside of which BatchNorm layers leave their running statistics alone.

    Raises:
        UsageError: timm does not support it for this backbone.
    """
    try:
        # timm's models without support either lack the method, or assert that it is not used.
        backbone.set_grad_checkpointing(True)
    except (AssertionError, AttributeError) as cause:
        architecture = backbone.pretrained_cfg.get("architecture", type(backbone).__name__)
        raise UsageError(
            f"{KEY}: timm supports no gradient checkpointing for {architecture}. Use another encoder.backbone, or save memory "
            "by train.micro_batch_size"
        ) from cause
    return FirstPass(batch_norms(backbone))


class FirstPass:
    """Distinguishes the forward pass of a step from the second one of checkpointed blocks, which happens in the backward pass.

    Args:
        layers: the BatchNorm layers.
    """

    def __init__(self, layers: list[nn.Module]) -> None:
        self.is_running = False
        self._saved: dict[nn.Module, list[Tensor]] = {}
        for layer in layers:
            layer.register_forward_pre_hook(self._save)
            # The second pass ends by an exception as soon as it has what the backward pass needs.
            layer.register_forward_hook(self._restore, always_call=True)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        self.is_running = True
        try:
            yield
        finally:
            self.is_running = False

    def _save(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if layer.training and not self.is_running:
            self._saved[layer] = [buffer.clone() for buffer in layer.buffers()]

    def _restore(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        for buffer, value in zip(layer.buffers(), self._saved.pop(layer, []), strict=False):
            buffer.copy_(value)
