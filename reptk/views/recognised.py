"""The kornia operations that reptk runs itself, and what each image draws for them.

An operation is recognised by its name and arguments; with an argument that is not among those below, it stays kornia's.
Drawing is apart from applying: `operation.draw(u, shape)` makes of uniform numbers a table, one row an image, that either
way of running takes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

Operation = dict[str, Any]
"""`{name, ...arguments}`, with kornia's names."""

Range = tuple[float, float]

CANDIDATES = 10
"""Crops tried before falling back, as torchvision does."""

NEUTRAL = (1.0, 1.0, 1.0, 0.0)
"""Factors of brightness, contrast, saturation and hue that change nothing."""


class Recognised(Protocol):
    """One operation; `columns` is how many uniform numbers it takes for an image."""

    columns: ClassVar[int]

    def draw(self, u: Tensor, shape: tuple[int, int]) -> Tensor:
        """What n images of this height and width draw, from u (n, columns) in [0, 1)."""
        ...


@dataclass(frozen=True)
class ResizedCrop:
    """A random part of the image, resized: torchvision's and kornia's distribution.

    draw: (n, 4) top, left, height, width in whole pixels. Area uniform in `scale` of the image, logarithm of the aspect
    ratio uniform; the first of ten candidates that fits, else the largest centred crop within `ratio`.
    """

    columns: ClassVar[int] = 2 * CANDIDATES + 2
    size: tuple[int, int]
    scale: Range = (0.08, 1.0)
    ratio: Range = (3 / 4, 4 / 3)

    def draw(self, u: Tensor, shape: tuple[int, int]) -> Tensor:
        height, width = shape
        area = _between(u[:, :CANDIDATES], *self.scale) * (height * width)
        # In float64, where everybody's exponential is the same once it is rounded to float32.
        aspect = _between(u[:, CANDIDATES:-2], *self.log_ratio).double().exp().float()
        wide, high = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
        fits = (wide > 0) & (wide <= width) & (high > 0) & (high <= height)
        first = (fits.int().cumsum(1) == 1) & fits  # at most one a row
        found = first.any(1)
        fallback_high, fallback_wide = self.largest(shape)
        high = torch.where(found, (high * first).sum(1), fallback_high)
        wide = torch.where(found, (wide * first).sum(1), fallback_wide)
        top = torch.where(found, (u[:, -2] * (height - high + 1)).floor(), ((height - high) / 2).floor())
        left = torch.where(found, (u[:, -1] * (width - wide + 1)).floor(), ((width - wide) / 2).floor())
        return torch.stack([top.minimum(height - high), left.minimum(width - wide), high, wide], dim=1)

    @property
    def log_ratio(self) -> Range:
        """Ends of the logarithm of the aspect ratio."""
        return math.log(self.ratio[0]), math.log(self.ratio[1])

    def largest(self, shape: tuple[int, int]) -> tuple[float, float]:
        """Height and width of the largest part whose width / height lies in `ratio`."""
        height, width = shape
        low, high = self.ratio
        if width / height < low:
            return float(min(height, max(1, round(width / low)))), float(width)
        if width / height > high:
            return float(height), float(min(width, max(1, round(height * high))))
        return float(height), float(width)


@dataclass(frozen=True)
class Crop:
    """A square at random out of the image and `padding` black pixels around it. draw: as ResizedCrop, may start below 0."""

    columns: ClassVar[int] = 2
    size: tuple[int, int]
    padding: int = 0

    def draw(self, u: Tensor, shape: tuple[int, int]) -> Tensor:
        room = [length + 2 * self.padding - side for length, side in zip(shape, self.size, strict=True)]
        if min(room) < 0:
            raise ValueError(
                f"images of {shape[1]} x {shape[0]} px, padded by {self.padding}, are smaller than the crop of "
                f"{self.size[1]} x {self.size[0]}; put a Resize before it"
            )
        top, left = ((u[:, axis] * (side + 1)).floor() - self.padding for axis, side in enumerate(room))
        return torch.stack([top, left, *(torch.full_like(top, side) for side in self.size)], dim=1)


@dataclass(frozen=True)
class Resize:
    """The whole image to one size, antialiased. draw: as ResizedCrop."""

    columns: ClassVar[int] = 0
    size: tuple[int, int]

    def draw(self, u: Tensor, shape: tuple[int, int]) -> Tensor:
        zero = torch.zeros(len(u), device=u.device)
        return torch.stack([zero, zero, zero + shape[0], zero + shape[1]], dim=1)


@dataclass(frozen=True)
class Flip:
    """A mirror image, left and right or `upright` top and bottom. draw: (n, 1), 1 for a flip."""

    columns: ClassVar[int] = 1
    p: float = 0.5
    upright: bool = False

    def draw(self, u: Tensor, shape: tuple[int, int]) -> Tensor:
        return (u < self.p).float()


@dataclass(frozen=True)
class Jitter:
    """Brightness, contrast, saturation and hue, in an order that each image draws.

    draw: (n, 8) the four factors, hue in turns, 1, 1, 1, 0 where an image drew none of it; then which of the four comes
    first, second, third and last.
    """

    columns: ClassVar[int] = 9
    brightness: Range
    contrast: Range
    saturation: Range
    hue: Range
    p: float = 1.0

    def draw(self, u: Tensor, shape: tuple[int, int]) -> Tensor:
        drew = u[:, 0] < self.p
        ranges = (self.brightness, self.contrast, self.saturation, self.hue)
        factors = [
            torch.where(drew, _between(u[:, column], *range_), neutral)
            for column, (range_, neutral) in enumerate(zip(ranges, NEUTRAL, strict=True), start=1)
        ]
        return torch.cat([torch.stack(factors, dim=1), u[:, 5:].argsort(1).float()], dim=1)


@dataclass(frozen=True)
class Gray:
    """Luma in all three channels. draw: (n, 1), 1 for grey."""

    columns: ClassVar[int] = 1
    p: float = 0.1

    def draw(self, u: Tensor, shape: tuple[int, int]) -> Tensor:
        return (u < self.p).float()


@dataclass(frozen=True)
class Blur:
    """A Gaussian of `kernel` pixels at reflected borders. draw: (n, 1) sigma in pixels, 0 for none."""

    columns: ClassVar[int] = 2
    kernel: tuple[int, int]
    sigma: Range
    p: float = 0.5

    def draw(self, u: Tensor, shape: tuple[int, int]) -> Tensor:
        if any(side // 2 >= length for side, length in zip(self.kernel, shape, strict=True)):
            raise ValueError(
                f"RandomGaussianBlur with kernel_size {list(self.kernel)} needs larger images than {shape[1]} x {shape[0]} px"
            )
        return _between(u[:, 1:], *self.sigma) * (u[:, :1] < self.p)


def recognise(table: Mapping[str, Any]) -> Recognised | None:
    """The operation of a table whose name and arguments are all known here, else None; the values are valid for kornia."""
    arguments = {name: value for name, value in table.items() if name != "name"}
    maker = _MAKERS.get(str(table.get("name")))
    try:
        return None if maker is None else maker(**arguments)
    except (TypeError, ValueError):  # an argument, or a form of it, that only kornia knows
        return None


def _resized_crop(
    *, size: Any, scale: Any = (0.08, 1.0), ratio: Any = (3 / 4, 4 / 3), cropping_mode: str = "slice"
) -> Recognised:
    return ResizedCrop(_pair(size), _range(scale), _range(ratio))


def _crop(*, size: Any, padding: Any = 0, p: float = 1.0) -> Recognised | None:
    return Crop(_pair(size), padding or 0) if p == 1 and isinstance(padding or 0, int) else None


def _resize(*, size: Any, antialias: bool = False, p: float = 1.0) -> Recognised | None:
    return Resize(_pair(size)) if antialias and p == 1 else None


def _jitter(
    *, brightness: Any = 0.0, contrast: Any = 0.0, saturation: Any = 0.0, hue: Any = 0.0, p: float = 1.0
) -> Recognised:
    around_one = [value if isinstance(value, list | tuple) else (max(0.0, 1 - value), 1 + value)
                  for value in (brightness, contrast, saturation)]  # fmt: skip
    turns = hue if isinstance(hue, list | tuple) else (-hue, hue)
    return Jitter(*(_range(value) for value in (*around_one, turns)), p)


def _blur(*, kernel_size: Any, sigma: Any, p: float = 0.5) -> Recognised:
    return Blur(_pair([kernel_size] * 2 if isinstance(kernel_size, int) else kernel_size), _range(sigma), p)


_MAKERS = {
    "RandomResizedCrop": _resized_crop,
    "RandomCrop": _crop,
    "Resize": _resize,
    "RandomHorizontalFlip": lambda *, p=0.5: Flip(p),
    "RandomVerticalFlip": lambda *, p=0.5: Flip(p, upright=True),
    "ColorJitter": _jitter,
    "RandomGrayscale": lambda *, p=0.1: Gray(p),
    "RandomGaussianBlur": _blur,
}


def _between(u: Tensor, low: float, high: float) -> Tensor:
    return low + u * (high - low)


def _pair(value: Any) -> tuple[int, int]:
    first, second = value
    if not (isinstance(first, int) and isinstance(second, int)):
        raise TypeError(f"two integers, got {value!r}")
    return first, second


def _range(value: Any) -> Range:
    low, high = value
    return float(low), float(high)
