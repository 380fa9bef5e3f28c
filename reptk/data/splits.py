"""What a data set is: images that can be fetched by number, labels, and which of them train, are searched, are queries."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class Images(Protocol):
    """Numbered images of one size."""

    def __len__(self) -> int: ...

    def fetch(self, numbers: Tensor) -> Tensor:
        """(n,) integers -> (n, 3, H, W) uint8."""
        ...


@dataclass(frozen=True)
class Split:
    """Images and their labels: (n,) integers, -1 for an image without one."""

    images: Images
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Data:
    """A data set, split for good.

    Args:
        train: what training sees.
        bank: what evaluation searches; None where there are no labels to evaluate with.
        query: what evaluation searches for. The same object as `bank` means leave-one-out.
        classes: class names, by label.
        protocol: one sentence that says how the splits were made; it stands beside every number.
        crop: share of the shorter side that the plain evaluation view keeps.
    """

    train: Split
    bank: Split | None
    query: Split | None
    classes: tuple[str, ...]
    protocol: str
    crop: float = 1.0


class InMemory:
    """Images held as one uint8 tensor (n, C, H, W); one channel is shown as three equal ones."""

    def __init__(self, pixels: Tensor) -> None:
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
            raise ValueError(f"images must be uint8 (n, 1 or 3, H, W), got {pixels.dtype} {tuple(pixels.shape)}")
        self.pixels = pixels
        self.is_grey = pixels.shape[1] == 1

    def __len__(self) -> int:
        return len(self.pixels)

    def fetch(self, numbers: Tensor) -> Tensor:
        pixels = self.pixels[numbers]
        return pixels.repeat(1, 3, 1, 1) if self.is_grey else pixels


def described(*, classes: int | None = None, size_px: int | None = None) -> Callable[[Any], Any]:
    """Tell what a data set looks like without opening it, so that it can be imitated (`--smoke`)."""

    def add(factory: Any) -> Any:
        factory.classes, factory.size_px = classes, size_px
        return factory

    return add
