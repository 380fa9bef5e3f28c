"""Whether the saved state of an optimizer can be that of this run's: checked before a step fails because of it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from reptk.core.errors import DataError


def check_optimizer_state(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Check a state before it is loaded.

    Raises:
        DataError: it has other options, or values that no optimizer has.
    """
    groups = saved["param_groups"]
    if len(groups) != len(optimizer.param_groups):
        raise _unfit(f"{len(groups)} groups of weights, not {len(optimizer.param_groups)}")
    sizes: dict[int, int] = {}
    for current, group in zip(optimizer.param_groups, groups, strict=True):
        for option, value in current.items():
            if option != "params" and not _is_alike(value, group[option]):
                raise _unfit(f"the option {option}={group[option]!r}")
        for number, weight in zip(group["params"], current["params"], strict=True):
            sizes[number] = weight.numel()
    kinds = set()
    for number, entries in saved["state"].items():
        if number not in sizes or not isinstance(entries, dict):
            raise _unfit(f"a state of the weight {number!r}")
        for name, value in entries.items():
            if not _is_state(value, sizes[number]):
                raise _unfit(f"another state {name}")
        kinds.add(tuple((name, type(value)) for name, value in entries.items()))
    # Optimizers process all weights at once, which takes the same kind of state for each.
    if len(kinds) > 1:
        raise _unfit("several kinds of state")


def _is_alike(current: Any, saved: Any) -> bool:
    if isinstance(current, bool) or current is None:
        return saved is current or isinstance(saved, bool)
    if isinstance(current, int | float):
        return isinstance(saved, int | float) and not isinstance(saved, bool)
    if isinstance(current, list | tuple):
        return type(saved) is type(current) and all(map(_is_alike, current, saved)) and len(current) == len(saved)
    return type(saved) is type(current)


def _is_state(value: Any, num_weights: int) -> bool:
    """Whether a value may be a moment, which has at most an entry for each weight, a count of steps, or nothing yet."""
    if isinstance(value, Tensor):
        return value.layout is torch.strided and value.is_floating_point() and value.numel() in (1, num_weights)
    return value is None or isinstance(value, int | float)


def _unfit(what: str) -> DataError:
    return DataError(f"the checkpoint is damaged: its optimizer has {what}")
