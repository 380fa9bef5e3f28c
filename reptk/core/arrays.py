"""Arrays of NumPy and sequences of numbers where tensors are expected, and tensors that hold NaN or infinity."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor


def as_tensor(name: str, values: ArrayLike | Tensor) -> Tensor:
    """Return a tensor itself, and an array or a sequence of numbers as a tensor, without a copy if possible.

    Args:
        name: what an error calls the values.

    Raises:
        TypeError: something else, or an array of another type than numbers.
    """
    if isinstance(values, Tensor):
        return values
    if isinstance(values, np.ndarray | Sequence) and not isinstance(values, str):
        try:
            return torch.as_tensor(values)
        except (TypeError, ValueError, RuntimeError) as cause:
            raise TypeError(f"{name} cannot be converted to a tensor: {cause}") from cause
    raise TypeError(f"{name} must be a tensor, an array or a sequence of numbers, not {type(values).__name__}")


def names_of_non_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors, e.g. of a state dict with its buffers, that hold NaN or infinity."""
    names = []
    for name, value in tensors.items():
        if value.is_floating_point() and not value.isfinite().all():
            names.append(name)
    return names
