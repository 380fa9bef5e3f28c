"""Batches in an order that is a function of (seed, epoch): for any number of ranks, workers and interruptions."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from reptk.core import rng
from reptk.core.errors import DataError
from reptk.data.prefetch import prefetch
from reptk.data.protocol import Split

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
        workers: threads that decode prefetch; 0 decodes in the one that asks.
        device: where the batches will be used.

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
        device: torch.device | str = "cpu",
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
        self.workers, self.device = workers, device

    def batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """The batches of steps `first_step` up to, not including, `last_step`; see `prefetch`."""
        order = self.order.steps(first_step, last_step)
        for images, numbers in prefetch(self.split.images, order, workers=self.workers, device=self.device):
            yield images, self.split.labels[numbers], numbers


def read_blocks(
    split: Split, ranges: Sequence[range], workers: int = 0, device: torch.device | str = "cpu"
) -> Iterator[tuple[Tensor]]:
    """Images (b, 3, H, W) uint8 of each range of numbers in turn, decoded prefetch by `workers` threads.

    Raises:
        DataError: an image cannot be read.
    """
    numbers = (torch.arange(part.start, part.stop) for part in ranges)
    for images, _ in prefetch(split.images, numbers, workers=workers, device=device):
        yield (images,)


class _Order:
    def __init__(self, count: int, batch_size: int, seed: int, rank: int, world: int) -> None:
        self.count, self.batch_size, self.seed, self.rank, self.world = count, batch_size, seed, rank, world

    def steps(self, first: int, last: int) -> Iterator[Tensor]:
        current, order = -1, torch.empty(0)
        for step in range(first, last):
            epoch, position = divmod(step, self.count // self.batch_size)
            if epoch != current:
                current, order = epoch, self.epoch(epoch)
            yield self.part(order, position)

    def epoch(self, number: int) -> Tensor:
        return torch.randperm(self.count, generator=rng.generator(self.seed, "order", number))

    def part(self, order: Tensor, position: int) -> Tensor:
        share = self.batch_size // self.world
        first = position * self.batch_size + self.rank * share
        return order[first : first + share]
