"""One step of the optimizer: the loss, the gradient, whether both are finite, the update and what the method does after it."""

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from reptk.core import distributed, rng
from reptk.core.device import autocast
from reptk.core.errors import NumericalError
from reptk.methods import Batch, Step
from reptk.training.loss_scaling import gradient_norm
from reptk.training.output_checks import check_outputs
from reptk.training.parts import Parts
from reptk.training.weight_average import update_average


def train_step(parts: Parts, model: nn.Module, batch: Batch, step: Step) -> dict[str, Tensor]:
    """Do one step of the optimizer, and return the outputs of the method.

    Args:
        parts: the run's.
        model: the method, or DDP around it.
        batch: of this rank.
        step: its number and its random key.

    Raises:
        NonFiniteStep: the loss, embeddings or the gradient are not finite on a rank, and nothing was changed. On a GPU it may
            be raised by `parts.finite_check.read` instead.
    """
    try:
        outputs = _forward(parts, model, batch, step)
    except NumericalError as cause:
        raise parts.finite_check.forward_failed(cause, batch, step.number) from cause
    check_outputs(outputs, parts.method)
    checked = parts.finite_check.after_forward(outputs, batch, step.number)
    # Outside of autocast, as torch recommends: backward operations run in the types of their forward operations.
    norm = parts.scaled_optimizer.backward(outputs["loss"], model, parts.settings.clip_norm)
    try:
        is_bad = parts.finite_check.after_backward(checked, norm, lambda: _local_gradient_norm(parts, batch, step))
    except NumericalError:
        parts.optimizer.zero_grad()
        raise
    parts.scaled_optimizer.step(is_bad)
    with torch.no_grad():
        parts.method.after_step(step)
    if parts.ema is not None:
        update_average(parts.ema, parts.method, step)
    return outputs


def _forward(parts: Parts, model: nn.Module, batch: Batch, step: Step) -> dict[str, Tensor]:
    """Return the outputs of the method, in the precision of the run."""
    settings = parts.settings
    # Dropout and stochastic depth draw from torch's global stream: seeded per step, a resumed run draws the same.
    torch.manual_seed(rng.key(settings.seed, "dropout", step.number, distributed.rank()))
    with autocast(parts.device, settings.precision):
        return model(batch, step)


def _local_gradient_norm(parts: Parts, batch: Batch, step: Step) -> Tensor:
    """Compute a step again without DDP, whose mean of the gradients hides on which rank one is not finite."""
    parts.optimizer.zero_grad()
    _forward(parts, parts.method, batch, step)["loss"].backward()
    return gradient_norm(parts.method)


def wrap_in_ddp(parts: Parts) -> nn.Module:
    """Return the method, or DDP around it if there are several ranks."""
    if distributed.world_size() == 1:
        return parts.method
    device_ids = [parts.device] if parts.device.type == "cuda" else None
    # Buffers are not broadcast before every step: a queue is the same on all ranks, and BatchNorm's running statistics, which
    # training does not use, are rank 0's in evaluation and in checkpoints.
    options = {"broadcast_buffers": False}
    if torch.__version__ >= "2.14":
        options = {"forward_sync_buffers": False}  # the name since then
    return DistributedDataParallel(parts.method, device_ids=device_ids, **options)
