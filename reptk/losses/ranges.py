"""Ranges of the losses' arguments: as annotations a recipe is checked against, and as checks for direct callers."""

import math
from typing import Annotated

from annotated_types import Ge, Gt

Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]


def positive(name: str, value: float) -> float:
    """`value` if it is finite and above 0, and its reciprocal fits float32.

    Raises:
        ValueError: otherwise.
    """
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a finite number above 0, got {value}")
    if 1 / value > 1e30:
        raise ValueError(f"{name} {value} is too small for float32")
    return value


def not_negative(name: str, value: float) -> float:
    """`value` if it is finite and at least 0.

    Raises:
        ValueError: otherwise.
    """
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a finite number of at least 0, got {value}")
    return value
