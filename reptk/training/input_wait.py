"""Time that a run spends waiting for images, and how it can be shortened."""

import os
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch

from reptk.data import Images, InMemory, num_cpus

INPUT_BOUND_SHARE = 0.15
"""Share of an epoch spent waiting for images above which a run says so."""


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
