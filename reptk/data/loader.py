"""Batches in an order that is a function of (seed, epoch): for any number of ranks, workers and interruptions."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from reptk.data.splits import Split
from reptk.errors import DataError
from reptk.keyed import generator

Batch = tuple[Tensor, Tensor, Tensor]
"""Images (b, 3, H, W) uint8, labels (b,), numbers of the images in the split (b,)."""


class Loader:
    """Training batches of one rank, from any step on.

    An epoch is a random order of all images, cut into global batches; what is left over at its end is dropped, so that
    no image is in a batch twice. Rank r of W takes the r-th of W equal parts of each batch.

    Args:
        split: the training images.
        batch_size: images of all ranks together.
        seed: of the order.
        rank, world: this rank and how many there are.
        workers: loader processes; 0 decodes in this one.
        pin: page-locked memory, for CUDA.

    Raises:
        DataError: fewer images than one batch.
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        pin: bool = False,
    ) -> None:
        if len(split) < batch_size:
            if len(split) < 2:
                raise DataError(f"{len(split)} training images; a batch needs at least 2")
            fitting = max(2, 2 ** (len(split).bit_length() - 2))
            raise DataError(
                f"{len(split)} training images, but train.batch_size is {batch_size}; use e.g. train.batch_size={fitting}"
            )
        self.split = split
        self.order = _Order(len(split), batch_size, seed, rank, world)
        self.steps_per_epoch = len(split) // batch_size
        self.workers, self.pin = workers, pin

    def batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """The batches of steps `first_step` up to, not including, `last_step`."""
        loader = DataLoader(
            _Fetch(self.split),
            sampler=self.order.steps(first_step, last_step),
            batch_size=None,
            num_workers=self.workers,
            pin_memory=self.pin,
            prefetch_factor=2 if self.workers else None,
            generator=torch.Generator(),
        )
        for images, numbers in loader:
            if isinstance(images, str):
                raise DataError(images)
            yield images, self.split.labels[numbers], numbers


def blocks(split: Split, ranges: Sequence[range], workers: int = 0) -> Iterator[Tensor]:
    """Images (b, 3, H, W) uint8 of each range of numbers in turn, decoded ahead by `workers` processes.

    Raises:
        DataError: an image cannot be read.
    """
    numbers = [torch.arange(part.start, part.stop) for part in ranges]
    loader = DataLoader(
        _Fetch(split),
        sampler=numbers,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=2 if workers else None,
        generator=torch.Generator(),
    )
    for images, _ in loader:
        if isinstance(images, str):
            raise DataError(images)
        yield images


class _Order:
    def __init__(self, count: int, batch_size: int, seed: int, rank: int, world: int) -> None:
        self.count, self.batch_size, self.seed, self.rank, self.world = count, batch_size, seed, rank, world

    def steps(self, first: int, last: int) -> Sampler[Tensor]:
        return _Steps(self, range(first, last))

    def epoch(self, number: int) -> Tensor:
        return torch.randperm(self.count, generator=generator(self.seed, "order", number))

    def part(self, order: Tensor, position: int) -> Tensor:
        share = self.batch_size // self.world
        first = position * self.batch_size + self.rank * share
        return order[first : first + share]


class _Steps(Sampler[Tensor]):
    def __init__(self, order: _Order, steps: range) -> None:
        self.order, self.steps = order, steps

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Tensor]:
        per_epoch = self.order.count // self.order.batch_size
        current, order = -1, torch.empty(0)
        for step in self.steps:
            epoch, position = divmod(step, per_epoch)
            if epoch != current:
                current, order = epoch, self.order.epoch(epoch)
            yield self.order.part(order, position)


class _Fetch(Dataset):
    """What a worker runs. An unreadable image travels back as its message, since a worker's exception loses its type."""

    def __init__(self, split: Split) -> None:
        self.images = split.images

    def __getitem__(self, numbers: Tensor) -> tuple[Tensor | str, Tensor]:
        try:
            return self.images.fetch(numbers), numbers
        except DataError as error:
            return str(error), numbers
