"""How many positives the images of a batch meet, by the sampler and the sizes of the classes, and which sampler to choose."""

from typing import NamedTuple

import torch
from scipy.stats import hypergeom
from torch import Tensor

from reptk.core.counts import format_count, format_range
from reptk.core.errors import DataError
from reptk.data.batches.batch_shape import BatchShape, batch_shape
from reptk.data.batches.samplers import EXPONENTS

FEW_WITHOUT_POSITIVE = 0.05
"""Share of the labeled images without a positive in their batch up to which random batches suffice."""

UNEQUAL_CLASSES = 10
"""Ratio of the largest to the smallest class from which on the plan speaks of it."""

LABELED_PART = 4
"""If labels are rare, a fourth of each batch is suggested for labeled images."""


class PositiveStatistics(NamedTuple):
    """What a labeled image of a batch meets, on average over the labeled images that are drawn.

    mean: other images of its class in its batch.
    share_without: probability that there is none; views of the image itself are positives, too, and are not counted.
    """

    mean: float
    share_without: float


def random_positives(sizes: Tensor, num_images: int, batch_size: int) -> PositiveStatistics:
    """Return what random batches give: of the other images of a batch, a hypergeometric number is of the same class.

    Args:
        sizes: (C,) labeled images of each class.
        num_images: all images, with those without a label.
        batch_size: images of a batch.
    """
    sizes = sizes[sizes > 0]
    return _hypergeometric(sizes, sizes - 1, num_images - 1, batch_size - 1)


def composed_positives(sizes: Tensor, shape: BatchShape, steps_per_epoch: int) -> PositiveStatistics:
    """Return what the batches of a `ClassSampler` give.

    Args:
        sizes: (C,) labeled images of each class.
        shape: of the batches.
        steps_per_epoch: of the sampler; with "class_balanced" and "square_root", an epoch has `steps_per_epoch * shape.labeled`
            draws, and two of the same image count as two images.
    """
    sizes = sizes[sizes >= shape.smallest_class]
    if shape.name == "pk":
        return PositiveStatistics(shape.images_per_class - 1.0, 0.0)
    if shape.name == "positives":
        pairs = sizes // 2
        others = _hypergeometric(pairs, pairs - 1, int(pairs.sum()) - 1, shape.labeled // 2 - 1)
        return PositiveStatistics(1 + 2 * others.mean, 0.0)
    if shape.name == "random":
        return _hypergeometric(sizes, sizes - 1, int(sizes.sum()) - 1, shape.labeled - 1)
    num_draws = steps_per_epoch * shape.labeled
    weights = sizes.double() ** EXPONENTS[shape.name]
    draws = (num_draws * weights / weights.sum()).round().long()
    return _hypergeometric(draws, draws - 1, num_draws - 1, shape.labeled - 1)


def _hypergeometric(weights: Tensor, positives: Tensor, population: int, drawn: int) -> PositiveStatistics:
    """Average over the classes, by `weights` (C,): of `population` others `drawn` are drawn, and `positives` (C,) count."""
    positives = positives.clamp(0, population)
    share = weights.double() / weights.sum()
    mean = drawn * positives.double() / max(population, 1)
    without = torch.from_numpy(hypergeom.pmf(0, population, positives.numpy(), drawn))
    return PositiveStatistics(float((share * mean).sum()), float((share * without).sum()))


def plan_batches(labels: Tensor, *, batch_size: int, shape: BatchShape | None) -> list[str]:
    """Return lines that say what batches hold, and which sampler to choose.

    Args:
        labels: (n,) of the training split, -1 for none.
        batch_size: images of a global batch.
        shape: of the batches; None for a random order of all images.
    """
    sizes = torch.bincount(labels[labels >= 0])
    sizes = sizes[sizes > 0]
    if not len(sizes):
        return []
    num_images = len(labels)
    steps_per_epoch = num_images // batch_size
    random = random_positives(sizes, num_images, batch_size)
    lines = [_describe_classes(sizes, num_images)]
    lines.append(f"random batches of {batch_size}: {_describe_positives(random)}")
    if shape is not None:
        configured = composed_positives(sizes, shape, steps_per_epoch)
        lines.append(f"train.sampler {shape.describe()}: {_describe_positives(configured)}")
        return lines
    if random.share_without <= FEW_WITHOUT_POSITIVE:
        lines.append("random batches suffice")
    else:
        lines += _alternatives(labels, batch_size, steps_per_epoch)
    ratio = float(sizes.max() / sizes.min())
    if ratio >= UNEQUAL_CLASSES:
        lines.append(
            f"the largest class has {ratio:.0f} times as many images as the smallest; train.sampler.name=square_root would "
            f"draw it {ratio**0.5:.0f} times as often, class_balanced equally often"
        )
    return lines


def _alternatives(labels: Tensor, batch_size: int, steps_per_epoch: int) -> list[str]:
    """Return a line for each sampler that these classes allow and that gives every labeled image positives."""
    sizes = torch.bincount(labels[labels >= 0])
    labeled_per_batch = None
    if bool((labels < 0).any()):
        # As many as there are labels for.
        labeled_per_batch = max(2, min(batch_size // LABELED_PART, int((sizes // 2).sum()) * 2) // 2 * 2)
    lines = []
    for name in ("pk", "positives"):
        try:
            shape = batch_shape(labels, batch_size=batch_size, name=name, labeled_per_batch=labeled_per_batch)
        except DataError:
            continue
        overrides = f"train.sampler.name={name}"
        if shape.unlabeled:
            overrides += f" train.sampler.labeled_per_batch={shape.labeled}"
        positives = composed_positives(sizes, shape, steps_per_epoch)
        if shape.describe() != name:
            overrides += f" ({shape.describe()})"
        lines.append(f"{overrides} would give {_describe_positives(positives)}")
    if not lines:
        lines.append("no sampler gives every labeled image a positive: the classes have too few labeled images")
    return lines


def _describe_classes(sizes: Tensor, num_images: int) -> str:
    num_labeled = int(sizes.sum())
    images = format_count(num_labeled, "labeled image")
    if num_labeled < num_images:
        images = f"{images} of {num_images:,}"
    classes = format_count(len(sizes), "class", "classes")
    smallest, largest = int(sizes.min()), int(sizes.max())
    text = f"{images} in {classes} of {format_range(smallest, largest, 'image')}"
    if smallest < largest:
        text += f", median {int(sizes.median()):,}"
    return text


def _describe_positives(positives: PositiveStatistics) -> str:
    text = f"{positives.mean:.3g} other images of its class for a labeled image, on average"
    percent = 100 * positives.share_without
    if percent < 0.05:
        return text
    decimals = 1
    if percent >= 10:
        decimals = 0
    return f"{text}; {percent:.{decimals}f} % of them meet none"
