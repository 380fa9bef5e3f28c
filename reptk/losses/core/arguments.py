"""Ranges of the losses' arguments: as annotations a recipe is checked against, and as checks for direct callers."""

import math
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]


def positive(name: str, value: float) -> float:
    """`value` if it is finite and above 0, and its reciprocal fits float32.

    Raises:
        ValueError: otherwise.
    """
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be a finite number above 0, got {value}")
    if 1 / value > 1e30:
        raise ValueError(f"{name} {value} is too small for float32")
    return value


def not_negative(name: str, value: float) -> float:
    """`value` if it is finite and at least 0.

    Raises:
        ValueError: otherwise.
    """
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a finite number of at least 0, got {value}")
    return value


def slope_of(temperature: float | Tensor) -> float | Tensor:
    """1 / temperature. A scalar tensor is not looked at, which on a GPU would mean waiting for it.

    Raises:
        ValueError: a number out of range, or a tensor that is no scalar.
    """
    if isinstance(temperature, Tensor):
        if temperature.ndim:
            raise ValueError(f"temperature must be a number or a scalar tensor, got shape {tuple(temperature.shape)}")
        return 1 / temperature
    return 1 / positive("temperature", temperature)


class Temperature(nn.Module):
    """A temperature as it is, or learned through its logarithm, starting there: `temperature()` gives its value."""

    def __init__(self, start: float, learned: bool) -> None:
        super().__init__()
        self.start = positive("temperature", start)
        self.logarithm = nn.Parameter(torch.tensor(math.log(start))) if learned else None

    def forward(self) -> float | Tensor:
        return self.start if self.logarithm is None else self.logarithm.exp()
