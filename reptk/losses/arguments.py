"""Arguments of the losses: their ranges, as annotations for recipes and as checks for direct callers, and temperature."""

import math
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

PositiveFloat = Annotated[float, Gt(0)]
NonNegativeFloat = Annotated[float, Ge(0)]


def check_positive(name: str, value: float) -> float:
    """Return `value` if it is finite and above 0, and its reciprocal fits float32.

    Raises:
        ValueError: otherwise.
    """
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be a finite number above 0, got {value}")
    # Not float32's limit of 3.4e38, so that sums of logits fit as well.
    if 1 / value > 1e30:
        raise ValueError(f"{name} {value} is too small for float32")
    return value


def check_not_negative(name: str, value: float) -> float:
    """Return `value` if it is finite and at least 0.

    Raises:
        ValueError: otherwise.
    """
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a finite number of at least 0, got {value}")
    return value


def logit_scale_of(temperature: float | Tensor) -> float | Tensor:
    """Return 1 / temperature.

    The value of a scalar tensor is not checked: reading it from a GPU would wait for the device.

    Raises:
        ValueError: a number out of range, or a tensor that is not a scalar.
    """
    if isinstance(temperature, Tensor):
        if temperature.ndim:
            raise ValueError(f"temperature must be a number or a scalar tensor, got shape {tuple(temperature.shape)}")
        return 1 / temperature
    return 1 / check_positive("temperature", temperature)


def temperature_argument(start: float, learned: bool) -> "float | LearnedTemperature":
    """Return the value of a loss's attribute `temperature`: the number, which a schedule may set, or what is learned.

    Args:
        start: the value, or where learning starts.
        learned: whether the temperature is learned.

    Raises:
        ValueError: `start` is out of range.
    """
    check_positive("temperature", start)
    if learned:
        return LearnedTemperature(start)
    return start


def current_value(temperature: "float | LearnedTemperature") -> float | Tensor:
    """Return the value of a temperature that is fixed, scheduled or learned."""
    if isinstance(temperature, LearnedTemperature):
        return temperature()
    return temperature


class LearnedTemperature(nn.Module):
    """A temperature that is learned through its logarithm. `temperature()` returns its current value, a scalar tensor.

    Args:
        start: where learning starts.
    """

    def __init__(self, start: float) -> None:
        super().__init__()
        # As CLIP does it: every value of the logarithm is a temperature above 0.
        self.logarithm = nn.Parameter(torch.tensor(math.log(start)))

    def forward(self) -> Tensor:
        return self.logarithm.exp()
