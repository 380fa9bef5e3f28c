"""Batches whose order is a function of (seed, epoch), for any number of ranks, workers and interruptions."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from reptk.core import rng
from reptk.core.counts import format_count
from reptk.core.errors import DataError
from reptk.data.batches.samplers import RandomSampler, Sampler
from reptk.data.loading.prefetch import prefetch
from reptk.data.protocol import Images, Split

LoadedBatch = tuple[Tensor, ...]
"""Images (b, 3, H, W) uint8, labels (b,), their numbers in the split (b,), and aspect ratios (b,) of squashed images."""


MAX_SUBSTITUTES = 100
"""How many images are tried in place of one that cannot be read."""


class Loader:
    """The training batches of one rank, from any step on.

    A sampler says which images the global batches of an epoch consist of; by default a random order of all images is cut
    into batches. Rank r of W receives the r-th of W equal slices of each global batch.

    Args:
        split: the training images. If they are squashed (`Split.resized`), their aspect ratios are in the batches.
        batch_size: images of a global batch, over all ranks.
        seed: of the order; of the default sampler.
        sampler: of this split, with this batch size; None for `RandomSampler`.
        rank, world_size: number of this rank, and how many ranks there are.
        workers: threads that fetch batches in advance; 0 to fetch each batch when it is due.
        device: where the batches will be used.

    Attributes:
        steps_per_epoch: global batches.
        dropped_per_epoch: images that would be in an incomplete batch, others in every epoch.

    Raises:
        DataError: the split has fewer images than one batch.
        TypeError: the images do not implement `reptk.data.Images`.
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        seed: int,
        sampler: Sampler | None = None,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if not isinstance(split.images, Images):
            raise TypeError(
                f"the training images are of class {type(split.images).__name__}, which does not derive from "
                "reptk.data.Images; derive it, and implement __len__ and fetch"
            )
        check_num_images(split, batch_size)
        self.split = split
        self.images = split.images
        self.batch_size = batch_size
        self.sampler = sampler or RandomSampler(len(split), batch_size=batch_size, seed=seed)
        self.rank = rank
        self.world_size = world_size
        self.workers = workers
        self.device = device
        self.steps_per_epoch = self.sampler.steps_per_epoch
        self.dropped_per_epoch = self.sampler.dropped_per_epoch

    def batches(self, first_step: int, last_step: int) -> Iterator[LoadedBatch]:
        """Yield the batches of the steps from `first_step` up to, but not including, `last_step`; see `prefetch`."""
        for first, last in self._ranges(first_step, last_step):
            yield from self._batches_of_range(first, last)

    def _ranges(self, first_step: int, last_step: int) -> Iterator[tuple[int, int]]:
        """Yield the ranges of steps whose batches are fetched in advance: all of them, or those of each epoch."""
        if self.sampler.hard_negatives is None:
            yield first_step, last_step
            return
        # The batches of an epoch are not known before those of the last one were trained on.
        while first_step < last_step:
            end_of_epoch = (first_step // self.steps_per_epoch + 1) * self.steps_per_epoch
            yield first_step, min(end_of_epoch, last_step)
            first_step = end_of_epoch

    def _batches_of_range(self, first_step: int, last_step: int) -> Iterator[LoadedBatch]:
        numbers_by_step = self._numbers(first_step, last_step)
        for images, numbers in prefetch(self.images, numbers_by_step, workers=self.workers, device=self.device):
            numbers = self._replace_unreadable(images, numbers)
            batch = (images, self.split.labels[numbers], numbers)
            # After the images were fetched: until a file is decoded, its shape is not known.
            aspect_ratios = self.images.aspect_ratios(numbers)
            if aspect_ratios is not None:
                batch += (aspect_ratios,)
            yield batch

    def _replace_unreadable(self, images: Tensor, numbers: Tensor) -> Tensor:
        """Write other images over those that could not be read; return the numbers of the images in the batch.

        Which image is the substitute depends on the data alone.
        """
        unreadable = self.images.unreadable(numbers)
        if not unreadable:
            return numbers
        numbers = numbers.clone()
        for position, number in enumerate(numbers.tolist()):
            if number in unreadable:
                images[position], numbers[position] = self._substitute(number)
        return numbers

    def _substitute(self, number: int) -> tuple[Tensor, int]:
        """Return an image that can be read in place of `number`, and its number; the same one every time."""
        # Drawn at random, so that the images of a folder that is damaged as a whole have different substitutes.
        stream = rng.generator("substitute", number, len(self.split))
        for _ in range(MAX_SUBSTITUTES):
            substitute = torch.randint(len(self.split), (1,), generator=stream)
            image = self.images.fetch(substitute)[0]
            if not self.images.unreadable(substitute):
                return image, int(substitute)
        raise DataError(f"{MAX_SUBSTITUTES} images drawn as substitutes cannot be read")

    def _numbers(self, first_step: int, last_step: int) -> Iterator[Tensor]:
        """Yield the numbers of this rank's images for each step."""
        rank_batch_size = self.batch_size // self.world_size
        order_epoch = None
        for step in range(first_step, last_step):
            epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
            if epoch != order_epoch:
                # Every rank draws the batches of all ranks, so that no communication is needed. They depend on the epoch
                # alone: a resumed run needs no state of the loader.
                batches = self.sampler.epoch(epoch)
                order_epoch = epoch
            first = self.rank * rank_batch_size
            yield batches[step_of_epoch][first : first + rank_batch_size]


def read_blocks(
    images: Images, ranges: Sequence[range], workers: int = 0, device: torch.device | str = "cpu"
) -> Iterator[tuple[Tensor, ...]]:
    """Yield the images (b, 3, H, W) uint8 of each range of numbers, in their order, fetched in advance by `workers` threads.

    Squashed images (`Images.resized`) are followed by their aspect ratios (b,).

    Raises:
        DataError: an image cannot be read.
    """
    blocks = (torch.arange(block.start, block.stop) for block in ranges)
    for pixels, _, *aspect_ratios in with_aspect_ratios(
        images, prefetch(images, blocks, workers=workers, device=device)
    ):
        yield pixels, *aspect_ratios


def with_aspect_ratios(images: Images, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, ...]]:
    """Append the aspect ratios (b,) of squashed images (`Images.resized`) to batches of images and their numbers (b,)."""
    for batch in batches:
        aspect_ratios = images.aspect_ratios(batch[1])
        if aspect_ratios is not None:
            batch += (aspect_ratios,)
        yield batch


def check_num_images(split: Split, batch_size: int) -> None:
    """Check that there are enough training images for a batch.

    Raises:
        DataError: there are fewer.
    """
    num_images = len(split)
    if num_images >= batch_size:
        return
    images = format_count(num_images, "training image")
    if num_images < 2:
        raise DataError(f"{images}; a batch needs at least 2")
    # The largest power of two that leaves an epoch more than one batch.
    fitting = max(2, 2 ** (num_images.bit_length() - 2))
    raise DataError(f"{images}, but train.batch_size is {batch_size}; use e.g. train.batch_size={fitting}")
