"""What a data set is: images that can be fetched by number, labels, and which of them train, are searched, are queries."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from reptk.core import rng


class Images(Protocol):
    """Numbered images of one size.

    That is all a data set has to offer. With `train.workers`, several threads call `fetch` at once, each for a part of a
    batch: it may read what all threads share, and must not change it.
    """

    def __len__(self) -> int: ...

    def fetch(self, numbers: Tensor) -> Tensor:
        """(n,) integers -> (n, 3, H, W) uint8."""
        ...


@runtime_checkable
class WritableImages(Protocol):
    """Images that can be written straight to where a batch is put together, by pixel."""

    size: int

    def fetch(self, numbers: Tensor) -> Tensor: ...

    def fetch_into(self, numbers: Tensor, rows: NDArray[np.uint8]) -> None:
        """Write images `numbers` into (n, size, size, 3) uint8; called by several threads at once."""
        ...


def fetch_batch(images: WritableImages, numbers: Tensor) -> Tensor:
    """(n, 3, size, size) uint8, in memory by pixel: what `fetch` is for images that have `fetch_into`."""
    rows = torch.empty(len(numbers), images.size, images.size, 3, dtype=torch.uint8)
    images.fetch_into(numbers, rows.numpy())
    return rearrange(rows, "n h w c -> n c h w")


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
    """Images held as one uint8 tensor (n, C, H, W), kept by pixel; one channel is shown as three that share memory."""

    def __init__(self, pixels: Tensor) -> None:
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
            raise ValueError(f"images must be uint8 (n, 1 or 3, H, W), got {pixels.dtype} {tuple(pixels.shape)}")
        self.is_grey = pixels.shape[1] == 1
        self._rows = rearrange(pixels, "n c h w -> n h w c").contiguous()

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def pixels(self) -> Tensor:
        """All images, (n, C, H, W)."""
        return rearrange(self._rows, "n h w c -> n c h w")

    def to(self, device: torch.device | str) -> "InMemory":
        """Move to a device for good, if there is room: more than a quarter of its free memory is left alone."""
        device = torch.device(device)
        if device.type != "cuda" or self._rows.nbytes <= torch.cuda.mem_get_info(device)[0] / 4:
            self._rows = self._rows.to(device)
        return self

    def fetch(self, numbers: Tensor) -> Tensor:
        rows = self._rows.index_select(0, numbers.to(self._rows.device, non_blocking=True))
        images = rearrange(rows, "n h w c -> n c h w")
        return images.expand(-1, 3, -1, -1) if self.is_grey else images


class _Picked:
    """Some of the images of another collection."""

    def __init__(self, images: Images, chosen: Tensor) -> None:
        self.images, self.chosen = images, chosen
        self.is_grey = getattr(images, "is_grey", False)

    def __len__(self) -> int:
        return len(self.chosen)

    def fetch(self, numbers: Tensor) -> Tensor:
        return self.images.fetch(self.chosen[numbers])


def subset(split: Split, chosen: Tensor) -> Split:
    """The images `chosen` (n,) of a split, numbered anew from 0."""
    return Split(_Picked(split.images, chosen), split.labels[chosen])


def subsample(data: Data, most: int) -> Data:
    """At most so many images in the bank, and so many queries, drawn once for all; for a quick look at a large data set."""

    def drawn(name: str) -> Split | None:
        split = getattr(data, name)
        if split is None or len(split) <= most:
            return split
        order = torch.randperm(len(split), generator=rng.generator("limited", name, len(split)))
        return subset(split, order[:most].sort().values)

    bank = drawn("bank")
    query = bank if data.query is data.bank else drawn("query")
    protocol = f"{data.protocol}; at most {most:,} of each, drawn once for all"
    return replace(
        data, train=bank if data.train is data.bank else drawn("train"), bank=bank, query=query, protocol=protocol
    )


def with_shape(*, classes: int | None = None, size_px: int | None = None) -> Callable[[Any], Any]:
    """Tell what a data set looks like without opening it, so that it can be imitated (`--smoke`)."""

    def add(factory: Any) -> Any:
        factory.classes, factory.size_px = classes, size_px
        return factory

    return add
