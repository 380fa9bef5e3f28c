"""What a data set consists of: images fetched by number, their labels, and the splits for training, bank and queries."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from reptk.core import rng
from reptk.data.decoding.resize import Color, Interpolation, ResizeMode


@runtime_checkable
class Images(Protocol):
    """Base class of image collections: n images of one size, numbered from 0.

    A subclass implements `__len__` and `fetch`; the other members have defaults that it may override. With
    `train.workers`, several threads call `fetch` at the same time, each for a part of a batch, so `fetch` must not change
    any state that the threads share.
    """

    is_gray: bool = False
    """The three channels of every image are equal; the raw-pixel baseline then uses one of them."""

    decoded_by: str | None = None
    """Names and versions of the libraries that decoded the images, for `results.json`; None if nothing was decoded."""

    def __len__(self) -> int:
        raise NotImplementedError

    def fetch(self, numbers: Tensor) -> Tensor:
        """Return the images with these numbers: (n,) integers to (n, 3, H, W) uint8."""
        raise NotImplementedError

    def path(self, number: int) -> Path | None:
        """Return the file that holds image `number`; None if the images are not in files of their own."""
        return None

    def files(self) -> list[Path]:
        """Return the files that the images are read from, in order; none if they are not in files.

        They tell a resumed run whether its data has changed. By default, the `path` of each image.
        """
        paths = map(self.path, range(len(self)))
        return [path for path in paths if path is not None]

    def block_starts(self) -> NDArray[np.int64] | None:
        """Return the numbers at which parts begin that are read faster as a whole, such as shards; ascending, from 0.

        `data.shuffle=window:G` mixes G of these parts at a time. None if there are no such parts.
        """
        return None

    def unreadable(self, numbers: Tensor) -> dict[int, str]:
        """Return which of these images were fetched and could not be read, and why. They are black.

        A collection that raises an error instead has none.
        """
        return {}

    def resized(self, resize: ResizeMode, border_color: Color | None = None) -> "Images":
        """Return the same images, with pictures that are not square cropped, padded or squashed (`reptk.data.decoding.resize`).

        A collection that does not have whole pictures returns itself.

        Args:
            resize: which of the three.
            border_color: of a picture that is padded; None for the one that it has.
        """
        return self

    def aspect_ratios(self, numbers: Tensor) -> Tensor | None:
        """Return width / height (n,), float32, that these images had before they were squashed, after they were fetched.

        None if images are not squashed.
        """
        return None


@runtime_checkable
class WritableImages(Images, Protocol):
    """Base class of images that can be written straight into a batch, without a tensor for each image.

    A subclass implements `__len__` and `fetch_into`, and sets `size`. Batches are put together faster than from `fetch`,
    which follows from `fetch_into`.
    """

    size: int
    """Side of the square images in pixels."""

    def fetch_into(self, numbers: Tensor, out: NDArray[np.uint8]) -> None:
        """Write the images with these numbers into `out`, (n, size, size, 3) uint8. Several threads call this at once."""
        raise NotImplementedError

    def fetch(self, numbers: Tensor) -> Tensor:
        """Return the images with these numbers, (n, 3, size, size) uint8 in channels-last memory."""
        return fetch_batch(self, numbers)


def fetch_batch(images: WritableImages, numbers: Tensor) -> Tensor:
    """Return images (n, 3, size, size) uint8, in channels-last memory, as written by `fetch_into`."""
    # Channels last, as decoders give pixels; convolutions are faster in this memory format, too.
    batch = torch.empty(len(numbers), images.size, images.size, 3, dtype=torch.uint8)
    images.fetch_into(numbers, batch.numpy())
    return rearrange(batch, "n h w c -> n c h w")


@dataclass(frozen=True)
class Split:
    """Images and their labels: (n,) integers, -1 for an image without a label."""

    images: Images
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def resized(self, resize: ResizeMode) -> "Split":
        """Return the split with its images resized, see `Images.resized`."""
        return replace(self, images=self.images.resized(resize))


@dataclass(frozen=True)
class Data:
    """A data set with fixed splits.

    Args:
        train: the images to train on.
        bank: the labeled images that evaluation searches; None if there are no labels to evaluate with.
        query: the images that evaluation searches for. If it is the same object as `bank`, evaluation leaves each query
            out of its own search.
        classes: class names, in the order of their labels.
        protocol: one sentence on how the images were split; it is reported with every result.
        crop: share of the side that evaluation retains of an image.
        resize: what evaluation does with pictures that are not square.
        interpolation: how evaluation resizes images.
        summary: lines that say what of the user's files was read and what was skipped, for the user to see before work
            starts.
    """

    train: Split
    bank: Split | None
    query: Split | None
    classes: tuple[str, ...]
    protocol: str
    crop: float = 1.0
    summary: tuple[str, ...] = ()
    resize: ResizeMode = "crop"
    interpolation: Interpolation = "bilinear"

    @property
    def splits(self) -> dict[str, Split | None]:
        """The splits by the names under which results, predictions and embeddings refer to them."""
        return {"train": self.train, "bank": self.bank, "query": self.query}


class InMemory(Images):
    """Images in one uint8 tensor (n, C, H, W), stored channels last.

    Gray images (C = 1) are fetched with three channels that share their memory.
    """

    def __init__(self, pixels: Tensor) -> None:
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
            raise ValueError(f"images must be uint8 (n, 1 or 3, H, W), got {pixels.dtype} {tuple(pixels.shape)}")
        self.is_gray = pixels.shape[1] == 1
        self._pixels = rearrange(pixels, "n c h w -> n h w c").contiguous()

    def __len__(self) -> int:
        return len(self._pixels)

    @property
    def pixels(self) -> Tensor:
        """All images, (n, C, H, W)."""
        return rearrange(self._pixels, "n h w c -> n c h w")

    def to(self, device: torch.device | str) -> "InMemory":
        """Move the images to a device; to a CUDA device only if they need at most a quarter of its free memory."""
        device = torch.device(device)
        if device.type == "cuda":
            # The rest of the memory is for the model and its activations, which are not allocated yet.
            free_bytes, _ = torch.cuda.mem_get_info(device)
            if self._pixels.nbytes > free_bytes / 4:
                return self
        self._pixels = self._pixels.to(device)
        return self

    def fetch(self, numbers: Tensor) -> Tensor:
        # Without non_blocking, the host would wait until the GPU has done everything before.
        numbers = numbers.to(self._pixels.device, non_blocking=True)
        images = rearrange(self._pixels.index_select(0, numbers), "n h w c -> n c h w")
        if self.is_gray:
            # A view: the channels are not copied.
            images = images.expand(-1, 3, -1, -1)
        return images


class ImageSubset(Images):
    """Some images of another collection, numbered from 0."""

    def __init__(self, images: Images, numbers: Tensor) -> None:
        self._images = images
        self._numbers = numbers
        self.is_gray = images.is_gray
        self.decoded_by = images.decoded_by

    def __len__(self) -> int:
        return len(self._numbers)

    def fetch(self, numbers: Tensor) -> Tensor:
        return self._images.fetch(self._numbers[numbers])

    def path(self, number: int) -> Path | None:
        return self._images.path(int(self._numbers[number]))

    def files(self) -> list[Path]:
        if len(self) and self.path(0) is None:
            return self._images.files()
        return super().files()

    def block_starts(self) -> NDArray[np.int64] | None:
        return block_starts_of_subset(self._images.block_starts(), self._numbers.numpy())

    def unreadable(self, numbers: Tensor) -> dict[int, str]:
        return _unreadable_of_subset(self._images, self._numbers, numbers)

    def resized(self, resize: ResizeMode, border_color: Color | None = None) -> Images:
        return ImageSubset(self._images.resized(resize, border_color), self._numbers)

    def aspect_ratios(self, numbers: Tensor) -> Tensor | None:
        return self._images.aspect_ratios(self._numbers[numbers])


class WritableSubset(WritableImages):
    """Some images of another collection that can be written straight into a batch, numbered from 0."""

    def __init__(self, images: WritableImages, numbers: Tensor) -> None:
        self._images = images
        self._numbers = numbers
        self.size = images.size
        self.is_gray = images.is_gray
        self.decoded_by = images.decoded_by

    def __len__(self) -> int:
        return len(self._numbers)

    def fetch_into(self, numbers: Tensor, out: NDArray[np.uint8]) -> None:
        self._images.fetch_into(self._numbers[numbers], out)

    def path(self, number: int) -> Path | None:
        return self._images.path(int(self._numbers[number]))

    def files(self) -> list[Path]:
        if len(self) and self.path(0) is None:
            return self._images.files()
        return super().files()

    def block_starts(self) -> NDArray[np.int64] | None:
        return block_starts_of_subset(self._images.block_starts(), self._numbers.numpy())

    def unreadable(self, numbers: Tensor) -> dict[int, str]:
        return _unreadable_of_subset(self._images, self._numbers, numbers)

    def resized(self, resize: ResizeMode, border_color: Color | None = None) -> Images:
        return WritableSubset(self._images.resized(resize, border_color), self._numbers)

    def aspect_ratios(self, numbers: Tensor) -> Tensor | None:
        return self._images.aspect_ratios(self._numbers[numbers])


def block_starts_of_subset(starts: NDArray[np.int64] | None, numbers: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """Return `Images.block_starts` of some images of a collection.

    Args:
        starts: those of the collection.
        numbers: (n,) of the images. None is returned if they do not ascend, since no block is then in one piece.
    """
    if starts is None or not len(numbers):
        return None
    step = 1 << 20
    for first in range(0, len(numbers), step):
        # One further number: the pieces overlap.
        if (np.diff(numbers[first : first + step + 1]) <= 0).any():
            return None
    # Blocks without any of these images have the start of the next one, and are dropped.
    subset_starts = np.unique(np.searchsorted(numbers, starts))
    return subset_starts[subset_starts < len(numbers)]


def _unreadable_of_subset(images: Images, subset_numbers: Tensor, numbers: Tensor) -> dict[int, str]:
    """`Images.unreadable` of a subset: `numbers` count in the subset, `subset_numbers` says which images those are."""
    image_numbers = subset_numbers[numbers]
    reasons = images.unreadable(image_numbers)
    if not reasons:
        return {}
    unreadable = {}
    for number, image_number in zip(numbers.tolist(), image_numbers.tolist(), strict=True):
        if image_number in reasons:
            unreadable[number] = reasons[image_number]
    return unreadable


def subset(split: Split, numbers: Tensor) -> Split:
    """Return the images with these numbers (n,) of a split and their labels, numbered from 0."""
    if isinstance(split.images, WritableImages):
        images: Images = WritableSubset(split.images, numbers)
    else:
        images = ImageSubset(split.images, numbers)
    return Split(images, split.labels[numbers])


def subsample(data: Data, max_images: int) -> Data:
    """Limit train, bank and query to `max_images` images each, for a quick look at a large data set.

    The images are drawn at random, the same ones in every call. Splits that were one object remain one.
    """
    bank = _draw(data.bank, "bank", max_images)
    if data.query is data.bank:
        query = bank
    else:
        query = _draw(data.query, "query", max_images)
    if data.train is data.bank:
        train = bank
    else:
        train = _draw(data.train, "train", max_images)
    protocol = f"{data.protocol}; at most {max_images:,} of each, drawn once for all"
    return replace(data, train=train, bank=bank, query=query, protocol=protocol)


def _draw(split: Split | None, name: str, count: int) -> Split | None:
    """Return `count` images of a split in their order, or all if there are fewer."""
    if split is None or len(split) <= count:
        return split
    # The key decides which images are drawn: with another one, earlier results could not be compared.
    order = torch.randperm(len(split), generator=rng.generator("limited", name, len(split)))
    return subset(split, order[:count].sort().values)


def with_shape(*, classes: int | None = None, size_px: int | None = None) -> Callable[[Any], Any]:
    """Record on a data-set factory how many classes it has and the side of its images.

    `--smoke` reads the attributes `classes` and `size_px` of the factory, in order to imitate the data set with generated
    images without opening it. None means that it depends on the user's files.
    """

    def add(factory: Any) -> Any:
        factory.classes = classes
        factory.size_px = size_px
        return factory

    return add
