"""How many images of a batch are labeled, and whether the classes are large enough for it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from reptk.core.counts import format_count
from reptk.core.errors import DataError
from reptk.core.name_lists import first_names

DEFAULT_IMAGES_PER_CLASS = 4

GROUP_SIZES = {"pk": DEFAULT_IMAGES_PER_CLASS, "positives": 2}
"""Images of one class that are drawn together; with "pk", by default."""

SMALLEST_CLASSES = {"pk": 2, "positives": 2}
"""Classes with fewer images count as images without a label."""

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


class AvailableImages(NamedTuple):
    """What a sampler can choose from.

    sizes: images of each class that is large enough for the sampler.
    labels: of these classes.
    others: images without a label, or of a class that is too small.
    """

    sizes: list[int]
    labels: list[int]
    others: int

    @property
    def labeled(self) -> int:
        return sum(self.sizes)

    @property
    def pairs(self) -> int:
        """Pairs of images of one class, with no image in two of them."""
        return sum(size // 2 for size in self.sizes)


class ShapeArguments(NamedTuple):
    """The arguments of `batch_shape`."""

    name: str
    batch_size: int
    images_per_class: int | None
    labeled_per_batch: int | None
    classes: Sequence[str]


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

    Without images that have no label, all images of a batch are labeled, whatever `labeled_per_batch` says. "pk" and
    "positives" count an image that is alone in its class as one without a label.

    Args:
        labels: (n,) of the training split, -1 for none; some image has one.
        batch_size: images of a global batch.
        name: of the sampler, see `reptk.data.batches.samplers.ClassSampler`.
        images_per_class: K of "pk"; None for the smallest of at least 4 that the classes allow.
        labeled_per_batch: labeled images of a batch, if there are images without a label; None for their share of the data,
            or the number nearest to it that the classes allow.
        classes: names of the classes, for messages.

    Raises:
        DataError: the labels do not allow such batches, with what they would allow.
    """
    arguments = ShapeArguments(name, batch_size, images_per_class, labeled_per_batch, classes)
    shape = _find_shape(labels, arguments)
    if shape is not None:
        return shape
    available = _available_images(labels, name)
    labeled = _preferred_count(arguments, available)
    problem = _problem(arguments, available, labeled)
    raise DataError(f"{problem}. What would work: {'; or '.join(_choices(labels, arguments))}")


def _find_shape(labels: Tensor, arguments: ShapeArguments) -> BatchShape | None:
    """Return the possible shape whose number of labeled images is nearest to the preferred one; None if there is none."""
    available = _available_images(labels, arguments.name)
    preferred = _preferred_count(arguments, available)
    counts = [preferred]
    if available.others and arguments.labeled_per_batch is None:
        lowest = max(1, arguments.batch_size - available.others)
        counts += sorted(range(lowest, arguments.batch_size + 1), key=lambda count: abs(count - preferred))
    for count in counts:
        if not _problem(arguments, available, count):
            k = 1
            if arguments.name == "pk":
                k = _images_per_class(arguments, available, count)
            return BatchShape(
                arguments.name, count, arguments.batch_size - count, k, SMALLEST_CLASSES.get(arguments.name, 1)
            )
    return None


def _available_images(labels: Tensor, name: str) -> AvailableImages:
    sizes = torch.bincount(labels[labels >= 0])
    large_enough = (sizes >= SMALLEST_CLASSES.get(name, 1)).nonzero()[:, 0]
    chosen = sizes[large_enough].tolist()
    return AvailableImages(chosen, large_enough.tolist(), len(labels) - sum(chosen))


def _preferred_count(arguments: ShapeArguments, available: AvailableImages) -> int:
    """Return the labeled images of a batch: what the recipe says, else their share of the data, at least one of each kind."""
    if not available.others:
        return arguments.batch_size
    if arguments.labeled_per_batch is not None:
        return arguments.labeled_per_batch
    group_size = GROUP_SIZES.get(arguments.name, 1)
    if arguments.name == "pk" and arguments.images_per_class is not None:
        group_size = arguments.images_per_class
    share = arguments.batch_size * available.labeled / (available.labeled + available.others)
    count = max(group_size, round(share / group_size) * group_size)
    return min(count, (arguments.batch_size - 1) // group_size * group_size)


def _problem(arguments: ShapeArguments, available: AvailableImages, labeled: int) -> str:
    """Return why batches cannot have `labeled` labeled images; empty if they can."""
    source = _count_clause(arguments, available, labeled)
    if labeled > arguments.batch_size:
        return f"{source}, more than the {arguments.batch_size} images of a batch (train.batch_size)"
    if labeled < 1:
        return f"{source}, and a batch needs labeled images"
    problem = ""
    if arguments.name == "pk":
        problem = _problem_of_pk(arguments, available, labeled)
    elif arguments.name == "positives":
        problem = _problem_of_pairs(arguments, available, labeled)
    elif arguments.name == "random" and available.labeled < labeled:
        problem = (
            f"{source}, and {format_count(available.labeled, 'training image has', 'training images have')} a label"
        )
    unlabeled = arguments.batch_size - labeled
    if not problem and unlabeled > available.others:
        return (
            f"{source}, and only {format_count(available.others, 'training image')} of the {unlabeled} others of a batch of "
            f"{arguments.batch_size} exist"
        )
    return problem


def _problem_of_pk(arguments: ShapeArguments, available: AvailableImages, labeled: int) -> str:
    """Return why batches cannot be classes of K images each: the sizes of the classes first, if these are the reason."""
    k = _images_per_class(arguments, available, labeled)
    k_text = f"train.sampler.images_per_class={k}"
    if arguments.images_per_class is None:
        k_text += " (the default)"
    count_text = f"{_count_key(available)}={labeled}"
    if _is_share(arguments, available):
        count_text = f"{format_count(labeled, 'labeled image')} per batch (their share of the data)"
    small = [number for number, size in enumerate(available.sizes) if size < k]
    if small:
        count = format_count(len(small), "class has", "classes have")
        sizes = _listed_sizes(arguments, available, small)
        return f"{count} fewer than {k} labeled images: {sizes}; {k_text} takes {k} of each"
    if labeled % k:
        return f"{count_text} is no multiple of {k_text}"
    if labeled < 2 * k:
        return f"{count_text} and {k_text} leave a batch with less than two classes"
    if labeled // k > len(available.sizes):
        count = format_count(len(available.sizes), "class has", "classes have")
        return f"{count} at least two labeled images; {count_text} and {k_text} take {labeled // k} classes for a batch"
    return ""


def _problem_of_pairs(arguments: ShapeArguments, available: AvailableImages, labeled: int) -> str:
    if labeled % 2:
        return f"{_count_clause(arguments, available, labeled)}, and guaranteed positives come in pairs"
    if available.pairs < labeled // 2:
        pairs = format_count(available.pairs, "pair")
        return (
            f"the classes are so small that they allow {pairs} of images of one class; train.sampler.name=positives needs "
            f"{labeled // 2:,} for a batch"
        )
    return ""


def _count_clause(arguments: ShapeArguments, available: AvailableImages, labeled: int) -> str:
    """Return how many labeled images a batch has, and which key or default says so."""
    if _is_share(arguments, available):
        return f"the share of labeled images gives {format_count(labeled, 'labeled image')} per batch"
    return f"{_count_key(available)} is {labeled}"


def _is_share(arguments: ShapeArguments, available: AvailableImages) -> bool:
    """Return whether the number of labeled images is their share of the data, since the recipe does not set it."""
    return available.others > 0 and arguments.labeled_per_batch is None


def _count_key(available: AvailableImages) -> str:
    """Return the key of the recipe that sets the number of labeled images."""
    if available.others:
        return "train.sampler.labeled_per_batch"
    return "train.batch_size"


def _listed_sizes(arguments: ShapeArguments, available: AvailableImages, numbers: Sequence[int]) -> str:
    """Return the names and sizes of some of the available classes, e.g. `eel (3), cat (5), ...`."""
    listed = []
    for number in numbers:
        label = available.labels[number]
        name = f"class {label}"
        if label < len(arguments.classes):
            name = arguments.classes[label]
        listed.append(f"{name} ({available.sizes[number]})")
    return first_names(listed, MAX_LISTED)


def _images_per_class(arguments: ShapeArguments, available: AvailableImages, labeled: int) -> int:
    """Return K of "pk": what the recipe says, else the smallest possible one of at least 4; that default if there is none."""
    if arguments.images_per_class is not None:
        return arguments.images_per_class
    for k in _possible_k(available, labeled):
        if k >= DEFAULT_IMAGES_PER_CLASS:
            return k
    return DEFAULT_IMAGES_PER_CLASS


def _possible_k(available: AvailableImages, labeled: int) -> list[int]:
    """Return every K for which `labeled` images are at least two classes of K, in ascending order."""
    largest = min([labeled // 2, *available.sizes])
    possible = []
    for k in range(2, largest + 1):
        if labeled % k == 0 and labeled // k <= len(available.sizes):
            possible.append(k)
    return possible


def _choices(labels: Tensor, arguments: ShapeArguments) -> list[str]:
    """Return what to write into the recipe instead, as a list of at least one; each of them is possible."""
    choices = []
    k = _other_k(labels, arguments)
    if k is not None:
        choices.append(f"train.sampler.images_per_class={k}")
    labeled = _other_labeled(labels, arguments)
    if labeled is not None:
        choices.append(f"train.sampler.labeled_per_batch={labeled}")
    batch_size = _other_batch_size(labels, arguments)
    if labeled is None and batch_size is not None:
        choices.append(f"train.batch_size={batch_size}")
    if arguments.name == "pk" and _find_shape(labels, arguments._replace(name="positives")) is not None:
        choices.append("train.sampler.name=positives, which needs two images of a class")
    if choices:
        return choices
    if arguments.labeled_per_batch is None:
        return ["train.sampler.name=random"]
    return ["train.sampler.name=random without train.sampler.labeled_per_batch"]


def _other_k(labels: Tensor, arguments: ShapeArguments) -> int | None:
    """Return the K nearest to that of "pk" that is possible; None if there is none."""
    if arguments.name != "pk":
        return None
    available = _available_images(labels, arguments.name)
    labeled = _preferred_count(arguments, available)
    before = _images_per_class(arguments, available, labeled)
    for k in sorted(_possible_k(available, labeled), key=lambda other: max(other / before, before / other)):
        if _find_shape(labels, arguments._replace(images_per_class=k)) is not None:
            return k
    return None


def _other_labeled(labels: Tensor, arguments: ShapeArguments) -> int | None:
    """Return the number of labeled images nearest to that of the recipe that is possible; None if there is none."""
    if arguments.labeled_per_batch is None:
        return None
    available = _available_images(labels, arguments.name)
    if not available.others:
        return None
    shape = _find_shape(labels, arguments._replace(labeled_per_batch=None))
    if shape is None:
        return None
    before = arguments.labeled_per_batch
    possible = [count for count in range(1, arguments.batch_size + 1) if not _problem(arguments, available, count)]
    return min(possible, key=lambda count: abs(count - before))


def _other_batch_size(labels: Tensor, arguments: ShapeArguments) -> int | None:
    """Return the next smaller batch that is possible; None if there is none."""
    for batch_size in range(arguments.batch_size - 1, 1, -1):
        if _find_shape(labels, arguments._replace(batch_size=batch_size)) is not None:
            return batch_size
    return None
