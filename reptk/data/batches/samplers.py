"""Which images the batches of an epoch consist of: at random, P classes x K images, balanced classes, or with positives.

All orders are functions of (seed, epoch), over the global batch, which the ranks divide among them; with hard negatives also
of what was mined after the epoch before.
"""

from collections.abc import Sequence
from math import ceil
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reptk.core import rng
from reptk.core.errors import DataError, UsageError
from reptk.data.batches.batch_shape import BatchShape, batch_shape
from reptk.data.batches.hard_negatives import ClassMembers, HardNegatives, confuse_classes
from reptk.data.batches.keyed_order import (
    DEFAULT_BLOCK,
    MAX_PERMUTED,
    EpochBatches,
    FeistelOrder,
    WindowOrder,
    default_blocks,
)

SamplerName = Literal["random", "pk", "class_balanced", "square_root", "positives"]

EXPONENTS = {"class_balanced": 0.0, "square_root": 0.5}
"""A class of n images is drawn in proportion to n to this power."""


HARD_NEGATIVES_PER_IMAGE = 4
"""Neighbors that are stored of each image: a few, since the classes of some may be in the batch already."""


MAX_DIGITS = 9
"""Of the number of shards in a window."""


class Sampler(Protocol):
    """The order of the images of every epoch.

    Attributes:
        hard_negatives: those that the next epoch depends on; None if it depends on (seed, epoch) alone.
        steps_per_epoch: global batches.
        dropped_per_epoch: images that an epoch leaves out because the last batch would be incomplete.
        description: how batches are composed, in a few words; empty for a random order.
    """

    steps_per_epoch: int
    dropped_per_epoch: int
    description: str
    hard_negatives: HardNegatives | None

    def epoch(self, number: int) -> Tensor | EpochBatches:
        """Return the numbers of the images in each batch of an epoch, (steps_per_epoch, batch_size) int64.

        Above `MAX_PERMUTED` images and in windows, they are computed batch by batch: item `step` is (batch_size,) int64.
        """
        ...


class RandomSampler:
    """A random order of all images, cut into batches; the remainder is dropped, so that no image is in an epoch twice.

    Above `MAX_PERMUTED` images, the order is not in memory (`reptk.data.batches.keyed_order`).

    Args:
        num_images: of the training split.
        batch_size: images of a global batch.
        seed: of the order.
        per_window: how many shards are mixed at a time; None for all images.
        block_starts: (b,) numbers of the images at which the shards begin; None for blocks of 1,024 images.
    """

    hard_negatives = None

    def __init__(
        self,
        num_images: int,
        *,
        batch_size: int,
        seed: int,
        per_window: int | None = None,
        block_starts: NDArray[np.int64] | None = None,
    ) -> None:
        self.num_images = num_images
        self.batch_size = batch_size
        self.seed = seed
        self.per_window = per_window
        self.description = ""
        if per_window is not None:
            unit = "shards"
            if block_starts is None:
                unit = f"blocks of {DEFAULT_BLOCK:,} images"
                block_starts = default_blocks(num_images)
            self.description = f"{unit} mixed {per_window:,} at a time, of {len(block_starts):,}"
        elif num_images > MAX_PERMUTED:
            self.description = "order by a keyed bijection"
        self.block_starts = block_starts
        self.steps_per_epoch = num_images // batch_size
        self.dropped_per_epoch = num_images % batch_size

    def epoch(self, number: int) -> Tensor | EpochBatches:
        if self.per_window is not None:
            order: WindowOrder | FeistelOrder = WindowOrder(
                self.block_starts, self.num_images, per_window=self.per_window, seed=self.seed, epoch=number
            )
            return EpochBatches(order, self.steps_per_epoch, self.batch_size)
        if self.num_images > MAX_PERMUTED:
            order = FeistelOrder(self.num_images, self.seed, "order", number)
            return EpochBatches(order, self.steps_per_epoch, self.batch_size)
        order = torch.randperm(self.num_images, generator=rng.generator(self.seed, "order", number))
        num_used = self.steps_per_epoch * self.batch_size
        return order[:num_used].view(self.steps_per_epoch, self.batch_size)


class ClassSampler:
    """Batches whose labeled images are chosen by their classes.

    A batch has `shape.labeled` labeled images and, if there are images without a label, `shape.unlabeled` of these, drawn
    at random. An epoch has as many steps as with random batches, so that a learning rate means the same; images may be in
    it several times, or not at all. The order within a batch is random, so that every rank has images of all kinds.

    - "random": labeled images at random.
    - "pk": P classes x K images (Hermans et al. 2017, arXiv 1703.07737). Every class is drawn equally often. An image
      that is alone in its class counts as one without a label. With hard negatives, every second class of a batch is
      instead that of a mined neighbor of the class before, see `confuse_classes`; until the first mining, batches are random.
    - "class_balanced": every class is drawn equally often in an epoch, in random batches.
    - "square_root": a class of n images is drawn in proportion to the square root of n (Mahajan et al. 2018,
      arXiv 1805.00932).
    - "positives": images in random pairs of one class, so that each one has a positive in its batch, and each class comes
      as often as in the data. An image that is alone in its class counts as one without a label.

    Args:
        labels: (n,) of the training split, -1 for none.
        shape: of the batches, from `batch_shape`.
        seed: of the order.
        with_hard_negatives: only with "pk".
    """

    dropped_per_epoch = 0

    def __init__(self, labels: Tensor, shape: BatchShape, *, seed: int, with_hard_negatives: bool = False) -> None:
        self.shape = shape
        self.description = shape.describe()
        self.seed = seed
        self.hard_negatives = None
        self.steps_per_epoch = len(labels) // (shape.labeled + shape.unlabeled)
        counts = torch.bincount(labels[labels >= 0])
        # Of an image without a label this is the last class's, which the first condition leaves out.
        is_composed = (labels >= 0) & (counts[labels] >= shape.smallest_class)
        self._rest = (~is_composed).nonzero()[:, 0]
        members = is_composed.nonzero()[:, 0]
        # Sorted by class, so that each class is a range.
        classes, order = labels[members].sort(stable=True)
        self._members = members[order]
        _, self._class_of_member, self._sizes = classes.unique_consecutive(return_inverse=True, return_counts=True)
        self._starts = self._sizes.cumsum(0) - self._sizes
        if with_hard_negatives and shape.labeled // shape.images_per_class < len(self._sizes):
            self.description += ", hard negatives"
            self.hard_negatives = HardNegatives(len(labels), HARD_NEGATIVES_PER_IMAGE)
        elif with_hard_negatives:
            # There is nothing to choose, and nothing is mined.
            self.description += ", all classes in each batch and so no hard negatives"
        self._class_members = ClassMembers(self._members, self._starts, self._sizes, len(labels))

    def epoch(self, number: int) -> Tensor:
        generator = rng.generator(self.seed, "order", self.shape.name, number)
        if self.shape.name == "pk":
            positions = self._p_times_k(generator)
        elif self.shape.name == "positives":
            positions = self._in_pairs(generator)
        elif self.shape.name == "random":
            positions = _rounds(len(self._members), self.shape.labeled, self.steps_per_epoch, generator)
        else:
            positions = self._weighted(EXPONENTS[self.shape.name], generator)
        batches = self._members[positions]
        if self.shape.unlabeled:
            unlabeled = _rounds(len(self._rest), self.shape.unlabeled, self.steps_per_epoch, generator)
            batches = torch.cat([batches, self._rest[unlabeled]], 1)
        permutations = torch.rand(batches.shape, generator=generator, dtype=torch.float64).argsort(1)
        return batches.gather(1, permutations)

    def _p_times_k(self, generator: torch.Generator) -> Tensor:
        images_per_class = self.shape.images_per_class
        classes_per_batch = self.shape.labeled // images_per_class
        classes = _rounds(len(self._sizes), classes_per_batch, self.steps_per_epoch, generator).flatten()
        positions = torch.empty(len(classes), images_per_class, dtype=torch.long)
        for number, indices in enumerate(_indices_by_value(classes, len(self._sizes))):
            drawn = _rounds(int(self._sizes[number]), images_per_class, len(indices), generator)
            positions[indices] = self._starts[number] + drawn
        positions = positions.view(self.steps_per_epoch, classes_per_batch, images_per_class)
        if self.hard_negatives is not None and self.hard_negatives.neighbors is not None:
            positions = confuse_classes(positions, self._class_members, self.hard_negatives.neighbors, generator)
        return positions.view(self.steps_per_epoch, self.shape.labeled)

    def _weighted(self, exponent: float, generator: torch.Generator) -> Tensor:
        num_draws = self.steps_per_epoch * self.shape.labeled
        draws = _draws_by_class(self._sizes.double() ** exponent, num_draws, generator)
        drawn = []
        for number, count in enumerate(draws.tolist()):
            images = _rounds(int(self._sizes[number]), 1, count, generator)[:, 0]
            drawn.append(self._starts[number] + images)
        positions = torch.cat(drawn)
        order = torch.randperm(num_draws, generator=generator)
        return positions[order].view(self.steps_per_epoch, self.shape.labeled)

    def _in_pairs(self, generator: torch.Generator) -> Tensor:
        pairs_per_batch = self.shape.labeled // 2
        num_pairs = int((self._sizes // 2).sum())
        steps_per_round = num_pairs // pairs_per_batch
        rounds = []
        for _ in range(ceil(self.steps_per_epoch / steps_per_round)):
            pairs = self._random_pairs(generator)
            order = torch.randperm(num_pairs, generator=generator)[: steps_per_round * pairs_per_batch]
            rounds.append(pairs[order].view(steps_per_round, self.shape.labeled))
        return torch.cat(rounds)[: self.steps_per_epoch]

    def _random_pairs(self, generator: torch.Generator) -> Tensor:
        """Return every image in one random pair of its class, (pairs, 2), but one of each class with an odd number."""
        order = torch.randperm(len(self._members), generator=generator)
        # Stable: the order within each class remains random.
        by_class = order[self._class_of_member[order].argsort(stable=True)]
        rank_in_class = torch.arange(len(by_class)) - self._starts[self._class_of_member]
        has_partner = rank_in_class < self._sizes[self._class_of_member] // 2 * 2
        return by_class[has_partner].view(-1, 2)


def create_sampler(
    labels: Tensor,
    *,
    batch_size: int,
    seed: int,
    name: SamplerName = "random",
    images_per_class: int | None = None,
    labeled_per_batch: int | None = None,
    hard_negatives: bool = False,
    classes: Sequence[str] = (),
    shuffle: str = "global",
    block_starts: NDArray[np.int64] | None = None,
) -> Sampler:
    """Create the sampler of a training split.

    Args:
        labels: (n,) of the split, -1 for none.
        batch_size: images of a global batch.
        seed: of the order.
        name: how batches are composed, see `ClassSampler`.
        images_per_class: K of "pk"; None for the smallest of at least 4 that the classes allow.
        labeled_per_batch: labeled images of a batch, if there are images without a label; None for their share of the data.
        hard_negatives: of "pk": whether the classes of a batch are chosen by neighbors that are mined during training.
        classes: names of the classes, for messages.
        shuffle: "global", or "window:G" to mix G shards at a time.
        block_starts: (b,) numbers of the images at which the shards begin; None if there are no shards.

    Raises:
        DataError: the labels do not allow such batches, with what they would allow.
        UsageError: windows, and batches that are composed by labels.
    """
    per_window = shards_per_window(shuffle)
    has_streams = labeled_per_batch is not None and bool((labels < 0).any())
    if name == "random" and not has_streams:
        return RandomSampler(
            len(labels), batch_size=batch_size, seed=seed, per_window=per_window, block_starts=block_starts
        )
    if per_window is not None:
        raise UsageError(
            f"data.shuffle={shuffle} mixes the images of some shards at a time, and train.sampler draws from all images by "
            "their labels; use data.shuffle=global, or train.sampler.name=random without labeled_per_batch"
        )
    if not bool((labels >= 0).any()):
        raise DataError(
            f"train.sampler.name={name} composes batches by labels, and the training images have none; use "
            "train.sampler.name=random without labeled_per_batch"
        )
    shape = batch_shape(
        labels,
        batch_size=batch_size,
        name=name,
        images_per_class=images_per_class,
        labeled_per_batch=labeled_per_batch,
        classes=classes,
    )
    return ClassSampler(labels, shape, seed=seed, with_hard_negatives=hard_negatives)


def shards_per_window(shuffle: str) -> int | None:
    """Return how many shards `data.shuffle` mixes at a time; None for all images.

    Raises:
        UsageError: it is neither "global" nor "window:G".
    """
    if shuffle == "global":
        return None
    number = shuffle.removeprefix("window:")
    if (
        number == shuffle
        or not number.isascii()
        or not number.isdecimal()
        or len(number) > MAX_DIGITS
        or not int(number)
    ):
        raise UsageError(
            f"data.shuffle must be global, or window:G with a number of shards such as window:16, got {shuffle!r}"
        )
    return int(number)


def _rounds(count: int, size: int, steps: int, generator: torch.Generator) -> Tensor:
    """Return `steps` groups of `size` different numbers below `count`, (steps, size).

    They are cut from random orders of all numbers, so that each comes about equally often. What does not fill a group at the
    end of an order is dropped.
    """
    steps_per_round = count // size
    groups = [torch.empty(0, size, dtype=torch.long)]
    for _ in range(ceil(steps / steps_per_round)):
        order = torch.randperm(count, generator=generator)
        groups.append(order[: steps_per_round * size].view(steps_per_round, size))
    return torch.cat(groups)[:steps]


def _draws_by_class(weights: Tensor, num_draws: int, generator: torch.Generator) -> Tensor:
    """Return how often each class is drawn (C,), in proportion to weights (C,), rounded up or down at random.

    Systematic sampling: the average over the epochs is in proportion to the weights.
    """
    ends = (weights / weights.sum()).cumsum(0) * num_draws
    ends[-1] = num_draws
    offset = torch.rand(1, generator=generator, dtype=torch.float64)
    limits = (ends + offset).floor().long()
    return limits.diff(prepend=torch.zeros(1, dtype=torch.long))


def _indices_by_value(values: Tensor, count: int) -> list[Tensor]:
    """Return for each number below `count` where it stands in `values` (n,)."""
    order = values.argsort(stable=True)
    return list(order.split(torch.bincount(values, minlength=count).tolist()))
