"""How many images of a batch are labeled, and whether the classes are large enough for it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from reptk.core.counts import format_count
from reptk.core.errors import DataError

DEFAULT_IMAGES_PER_CLASS = 4

MAX_LISTED = 3


class BatchShape(NamedTuple):
    """What every batch of a sampler consists of.

    name: of the sampler.
    labeled: images chosen by their classes.
    unlabeled: images drawn at random from the others.
    images_per_class: K of "pk"; else 1.
    smallest_class: classes with fewer images count as images without a label.
    """

    name: str
    labeled: int
    unlabeled: int
    images_per_class: int
    smallest_class: int

    def describe(self) -> str:
        """Return the shape in a few words, e.g. `pk, 8 classes x 8 images, 64 of 256 labeled`."""
        text = self.name
        if self.name == "pk":
            text = f"pk, {self.labeled // self.images_per_class} classes x {self.images_per_class} images"
        if self.unlabeled:
            text += f", {self.labeled} of {self.labeled + self.unlabeled} labeled"
        return text


def batch_shape(
    labels: Tensor,
    *,
    batch_size: int,
    name: str,
    images_per_class: int | None = None,
    labeled_per_batch: int | None = None,
    classes: Sequence[str] = (),
) -> BatchShape:
    """Return the shape of the batches of a sampler.

    Without images that have no label, all images of a batch are labeled, whatever `labeled_per_batch` says.

    Args:
        labels: (n,) of the training split, -1 for none; some image has one.
        batch_size: images of a global batch.
        name: of the sampler, see `reptk.data.samplers.ClassSampler`.
        images_per_class: K of "pk"; None for the smallest of at least 4 that the classes allow.
        labeled_per_batch: labeled images of a batch, if there are images without a label; None for their share of the data.
        classes: names of the classes, for messages.

    Raises:
        DataError: the labels do not allow such batches, with what they would allow.
    """
    k = images_per_class or DEFAULT_IMAGES_PER_CLASS
    group_size = {"pk": k, "positives": 2}.get(name, 1)
    smallest_class = 1
    if name == "positives":
        smallest_class = 2
    sizes = torch.bincount(labels[labels >= 0])
    num_labeled = int(sizes[sizes >= smallest_class].sum())
    num_others = len(labels) - num_labeled
    key = "train.batch_size"
    num_composed = batch_size
    if num_others:
        key = "train.sampler.labeled_per_batch"
        # The share of the data, in whole groups, and at least one of each kind.
        share = batch_size * num_labeled / len(labels)
        num_composed = max(group_size, round(share / group_size) * group_size)
        num_composed = min(num_composed, (batch_size - 1) // group_size * group_size)
    if num_others and labeled_per_batch is not None:
        num_composed = labeled_per_batch
    source = f"{key} is {num_composed}"
    if num_composed > batch_size:
        raise DataError(f"{source}, more than the {batch_size} images of a batch (train.batch_size)")
    if name == "pk":
        if images_per_class is None:
            k = _smallest_possible_k(sizes[sizes > 0], num_composed)
        _check_p_times_k(sizes, num_composed, k, key, classes)
    if name == "positives" and (num_composed % 2 or num_composed == 0):
        raise DataError(f"{source}, and guaranteed positives come in pairs: use an even number from 2 on")
    num_pairs = int((sizes // 2).sum())
    if name == "positives" and num_pairs < num_composed // 2:
        raise DataError(
            f"train.sampler.name=positives needs {format_count(num_composed // 2, 'pair')} of images of one class for a batch, "
            f"and the labels allow {num_pairs}; use {key}={2 * num_pairs}"
        )
    if name == "random" and num_labeled < num_composed:
        raise DataError(
            f"{source}, and {format_count(num_labeled, 'training image')} have a label; use at most that many"
        )
    num_unlabeled = batch_size - num_composed
    if num_unlabeled > num_others:
        raise DataError(
            f"{source} of a batch of {batch_size}, and only {format_count(num_others, 'training image')} of the "
            f"{num_unlabeled} others exist; use train.sampler.labeled_per_batch={batch_size - num_others} or more"
        )
    return BatchShape(name, num_composed, num_unlabeled, k if name == "pk" else 1, smallest_class)


def _check_p_times_k(sizes: Tensor, num_images: int, k: int, key: str, classes: Sequence[str]) -> None:
    """Check that every batch can have P classes of K images.

    Raises:
        DataError: it cannot, with what would work.
    """
    present = sizes[sizes > 0]
    problem = ""
    source = f"{key} is {num_images}"
    if num_images % k:
        problem = f"{source}, which is no multiple of it"
    elif num_images < 2 * k:
        problem = f"{source}, which leaves a batch with less than two classes"
    elif num_images // k > len(present):
        problem = f"{source}, which takes {num_images // k} classes, and {len(present)} have labels"
    elif int(present.min()) < k:
        problem = _small_classes(sizes, k, classes)
    if not problem:
        return
    choices = [f"train.sampler.images_per_class={other}" for other in _other_k(present, num_images, k)]
    choices += [f"{key}={other}" for other in _other_size(present, num_images, k)]
    if int((present >= 2).sum()):
        choices.append("train.sampler.name=positives, which needs two images of a class")
    advice = "; or ".join(choices) or "train.sampler.name=random"
    raise DataError(f"train.sampler.images_per_class is {k}, but {problem}. What would work: {advice}")


def _small_classes(sizes: Tensor, k: int, classes: Sequence[str]) -> str:
    small = ((sizes > 0) & (sizes < k)).nonzero()[:, 0].tolist()
    listed = []
    for label in small[:MAX_LISTED]:
        name = classes[label] if label < len(classes) else f"class {label}"
        listed.append(f"{name} ({int(sizes[label])})")
    if len(small) > MAX_LISTED:
        listed.append("...")
    return f"{format_count(len(small), 'class has', 'classes have')} fewer images with labels: {', '.join(listed)}"


def _smallest_possible_k(present: Tensor, num_images: int) -> int:
    """Return the smallest K of at least `DEFAULT_IMAGES_PER_CLASS` that is possible; that default if there is none."""
    for k in _possible_k(present, num_images):
        if k >= DEFAULT_IMAGES_PER_CLASS:
            return k
    return DEFAULT_IMAGES_PER_CLASS


def _other_k(present: Tensor, num_images: int, k: int) -> list[int]:
    """Return the K nearest to `k` that is possible for this many images, in a list that is empty if there is none."""
    return sorted(_possible_k(present, num_images), key=lambda other: max(other / k, k / other))[:1]


def _possible_k(present: Tensor, num_images: int) -> list[int]:
    """Return every K for which so many images are at least two classes of K, in ascending order."""
    possible = []
    for k in range(2, int(present.min()) + 1):
        num_classes, remainder = divmod(num_images, k)
        if not remainder and 2 <= num_classes <= len(present):
            possible.append(k)
    return possible


def _other_size(present: Tensor, num_images: int, k: int) -> list[int]:
    """Return the number of images nearest to `num_images` that is possible with this K, in a list that may be empty."""
    if int(present.min()) < k:
        return []
    num_classes = min(len(present), num_images // k)
    if num_classes < 2:
        return []
    return [num_classes * k]
