"""Checks of what a step of training returns, and of weights before they are saved."""

from collections.abc import Mapping

from torch import Tensor

from reptk.core.arrays import names_of_non_finite
from reptk.core.counts import format_count
from reptk.core.device import Precision
from reptk.core.errors import NumericalError, UsageError
from reptk.methods import Method

DIVERGED = "the weights have diverged. Lower optim.lr, lengthen optim.warmup_epochs, or set train.clip_norm=1"

OVERFLOWED = (
    "; or numbers above 65,504, the largest of float16, occur in the encoder: train.precision=fp32 has room for them"
)


def diverged(precision: Precision) -> str:
    """Return what embeddings that are not finite mean, and what to change."""
    if precision == "fp16":
        return DIVERGED + OVERFLOWED
    return DIVERGED


def check_outputs(outputs: object, method: Method) -> None:
    """Check what a method's `forward` returned.

    Raises:
        UsageError: it is no dictionary with a scalar tensor "loss".
    """
    name = type(method).__qualname__
    if not isinstance(outputs, dict) or "loss" not in outputs:
        returned = f"a dictionary of {sorted(outputs)}" if isinstance(outputs, dict) else type(outputs).__name__
        raise UsageError(f"{name}.forward must return a dictionary with 'loss', and returned {returned}")
    loss = outputs["loss"]
    if not isinstance(loss, Tensor) or loss.ndim:
        shape = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise UsageError(f"{name}.forward must return a scalar tensor as 'loss', and returned {shape}")


def check_finite_weights(state_dict: Mapping[str, Tensor], step: int) -> None:
    """Check weights and buffers, e.g. running statistics of BatchNorm, before they are saved.

    Raises:
        NumericalError: some are NaN or infinite.
    """
    non_finite = names_of_non_finite(state_dict)
    if non_finite:
        raise NumericalError(
            f"after step {step}, NaN or infinity in {format_count(len(non_finite), 'weight')}, {non_finite[0]} first; nothing "
            "is saved"
        )
