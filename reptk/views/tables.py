"""Operations from tables `{name, ...arguments}` with kornia's names and arguments."""

from collections.abc import Mapping
from typing import Any

from reptk.views.crops import RandomCrop, RandomResizedCrop, Resize
from reptk.views.operations import (
    ColorJitter,
    RandomFlip,
    RandomGaussianBlur,
    RandomGrayscale,
    Range,
    Shape,
    ViewOperation,
)

Operation = dict[str, Any]
"""`{name, ...arguments}`, e.g. `{"name": "RandomGrayscale", "p": 0.2}`."""


def native_operation(table: Mapping[str, Any]) -> ViewOperation | None:
    """Return reptk's operation for a table, or None if only kornia has it with these arguments.

    The arguments must be valid for kornia, which checks them when it builds its own operation.
    """
    arguments = {name: value for name, value in table.items() if name != "name"}
    factory = _FACTORIES.get(str(table.get("name")))
    if factory is None:
        return None
    try:
        return factory(**arguments)
    except (TypeError, ValueError):
        # An argument, or a form of it, that the factories below do not have.
        return None


# The factories have kornia's defaults. One that returns None leaves the operation to kornia.


def _random_resized_crop(
    *, size: Any, scale: Any = (0.08, 1.0), ratio: Any = (3 / 4, 4 / 3), cropping_mode: str = "slice"
) -> ViewOperation:
    return RandomResizedCrop(_shape(size), _range(scale), _range(ratio))


def _random_crop(*, size: Any, padding: Any = 0, p: float = 1.0) -> ViewOperation | None:
    padding = padding or 0  # kornia's default is None
    if p != 1 or not isinstance(padding, int):
        return None
    return RandomCrop(_shape(size), padding)


def _resize(*, size: Any, antialias: bool = False, p: float = 1.0) -> ViewOperation | None:
    if p != 1 or not antialias:
        return None
    return Resize(_shape(size))


def _horizontal_flip(*, p: float = 0.5) -> ViewOperation:
    return RandomFlip(p)


def _vertical_flip(*, p: float = 0.5) -> ViewOperation:
    return RandomFlip(p, is_vertical=True)


def _color_jitter(
    *, brightness: Any = 0.0, contrast: Any = 0.0, saturation: Any = 0.0, hue: Any = 0.0, p: float = 1.0
) -> ViewOperation:
    if not isinstance(hue, list | tuple):
        hue = (-hue, hue)
    return ColorJitter(_around_one(brightness), _around_one(contrast), _around_one(saturation), _range(hue), p)


def _random_grayscale(*, p: float = 0.1) -> ViewOperation:
    return RandomGrayscale(p)


def _random_gaussian_blur(*, kernel_size: Any, sigma: Any, p: float = 0.5) -> ViewOperation:
    if isinstance(kernel_size, int):
        kernel_size = (kernel_size, kernel_size)
    return RandomGaussianBlur(_shape(kernel_size), _range(sigma), p)


_FACTORIES = {
    "RandomResizedCrop": _random_resized_crop,
    "RandomCrop": _random_crop,
    "Resize": _resize,
    "RandomHorizontalFlip": _horizontal_flip,
    "RandomVerticalFlip": _vertical_flip,
    "ColorJitter": _color_jitter,
    "RandomGrayscale": _random_grayscale,
    "RandomGaussianBlur": _random_gaussian_blur,
}


def _shape(value: Any) -> Shape:
    height, width = value
    if not (isinstance(height, int) and isinstance(width, int)):
        raise TypeError(f"two integers, got {value!r}")
    return height, width


def _range(value: Any) -> Range:
    low, high = value
    return float(low), float(high)


def _around_one(value: Any) -> Range:
    if isinstance(value, list | tuple):
        return _range(value)
    return float(max(0.0, 1 - value)), float(1 + value)
