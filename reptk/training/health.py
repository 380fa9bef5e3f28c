"""Checks of a run while it trains: losses and weights that are not finite, and time spent waiting for images."""

import os
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from reptk.core.arrays import names_of_non_finite
from reptk.core.counts import format_count
from reptk.core.device import Precision
from reptk.core.errors import NumericalError, UsageError
from reptk.data import Images, InMemory, num_cpus
from reptk.methods import Method

INPUT_BOUND_SHARE = 0.15
"""Share of an epoch spent waiting for images above which a run says so."""

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


def input_bound_advice(images: Images, data_part: Mapping[str, Any], workers: int, device: torch.device) -> str:
    """Return how the wait for images can be shortened, as the end of a sentence; empty if nothing applies.

    Args:
        images: of the training split.
        data_part: the recipe's `[data]` table.
        workers: decoding threads of each rank.
        device: of the training.
    """
    ranks_on_machine = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # set by torchrun
    cpus_per_rank = max(1, num_cpus() // ranks_on_machine)
    is_uncached = data_part.get("cache") is False
    advice = []
    if not isinstance(images, InMemory) and workers < cpus_per_rank:
        advice.append(f"raise train.workers (now {workers} of {cpus_per_rank} cores)")
    if is_uncached:
        advice.append("set data.cache=true")
    if is_uncached and data_part.get("jpeg") == "auto" and find_spec("simplejpeg") is None:
        advice.append('pip install "reptk[jpeg]" if they are JPEG')
    reason = ""
    if device.type == "cpu" and is_uncached:
        reason = ", which are decoded on the cores that train"
    if not advice:
        return reason
    alternatives = advice[-1]
    if len(advice) > 1:
        alternatives = f"{', '.join(advice[:-1])} or {advice[-1]}"
    return f"{reason}; {alternatives}"


def input_bound_message(waiting_share: float, advice: str) -> str:
    """Return the line about an epoch of which this share was spent waiting for images."""
    return f"input-bound: {100 * waiting_share:.0f} % of the time went into waiting for images{advice}"
