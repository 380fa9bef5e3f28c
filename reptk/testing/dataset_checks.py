"""The check of data sets."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from reptk.core import rng
from reptk.core.name_lists import first_names_and_count
from reptk.data import Data, Images, Split
from reptk.data.protocol import WritableImages, fetch_batch
from reptk.testing.requirements import (
    Outcome,
    Requirement,
    global_rng_moved,
    qualified_name,
    raise_violations,
    try_requirements,
)

MOST_IMAGES = 32
"""Images of each split that are read at most, at even distances."""


def check_dataset(factory_or_data: Callable[..., Data] | Data, **arguments: Any) -> None:
    """Check a data set against `DATASET_REQUIREMENTS`; at most 32 images of each split are read.

    Args:
        factory_or_data: the registered factory, called with `arguments`, or its result.
        arguments: e.g. `root="photos"`.

    Raises:
        AssertionError: one line for each violated requirement.

    Example:
        >>> from reptk.data import generated
        >>> check_dataset(generated, classes=3)
    """
    data = factory_or_data
    if callable(factory_or_data) and not isinstance(factory_or_data, Data):
        data = factory_or_data(**arguments)
    raise_violations(try_dataset(data), "a data set", qualified_name(factory_or_data))


def try_dataset(data: Data) -> list[Outcome]:
    """Try `DATASET_REQUIREMENTS` on what a data set's factory returned, and return what came of each."""
    with rng.seeded("check_dataset"):
        return try_requirements(data, DATASET_REQUIREMENTS)


def _splits(data: Data) -> list[tuple[str, Split]]:
    splits = [("train", data.train), ("bank", data.bank), ("query", data.query)]
    return [(name, split) for name, split in splits if split is not None]


def _sample(split: Split) -> Tensor:
    """Return the numbers of the images to read, ascending."""
    return torch.linspace(0, len(split) - 1, min(len(split), MOST_IMAGES)).long().unique()


def _not_data(data: Data) -> str | None:
    if not isinstance(data, Data):
        return f"it gave {type(data).__name__}"
    if (data.bank is None) != (data.query is None):
        return "it has only one of bank and query"
    if not isinstance(data.protocol, str) or not data.protocol.strip():
        return "protocol is empty: say in a sentence how the images were split"
    if not 0 < data.crop <= 1:
        return f"crop is {data.crop}"
    return None


def _wrong_lengths(data: Data) -> str | None:
    for name, split in _splits(data):
        if not len(split):
            return f"{name} is empty"
        if len(split.images) != len(split.labels) or split.labels.ndim != 1:
            return f"{name} has {len(split.images)} images and labels of shape {tuple(split.labels.shape)}"
    return None


def _wrong_labels(data: Data) -> str | None:
    for name, split in _splits(data):
        labels = split.labels
        if labels.dtype != torch.int64:
            return f"{name} has labels of {labels.dtype}"
        if int(labels.min()) < -1:
            return f"{name} has the label {int(labels.min())}"
        if int(labels.max()) >= len(data.classes) and int(labels.max()) >= 0:
            return f"{name} has the label {int(labels.max())}, and there are {len(data.classes)} class names"
    return None


def _queries_without_class_in_bank(data: Data) -> str | None:
    if data.bank is None or data.query is None:
        return None
    labels = data.query.labels[data.query.labels >= 0]
    if not len(labels):
        return "no query has a label"
    missing = sorted(set(labels.tolist()) - set(data.bank.labels.tolist()))
    if not missing:
        return None
    names = []
    for label in missing:
        # A label beyond the class names is another requirement's violation.
        names.append(data.classes[label] if label < len(data.classes) else str(label))
    return f"the bank has no image of {first_names_and_count(names, 3)}"


def _not_images(data: Data) -> str | None:
    for name, split in _splits(data):
        if not isinstance(split.images, Images):
            return f"the images of {name} are a {type(split.images).__qualname__}; subclass reptk.data.Images"
    return None


def _wrong_shape(data: Data) -> str | None:
    shapes = {}
    for name, split in _splits(data):
        numbers = _sample(split)
        images = split.images.fetch(numbers)
        if not isinstance(images, Tensor):
            return f"{name} gave {type(images).__name__}"
        if images.dtype != torch.uint8:
            return f"{name} gave {images.dtype}"
        if images.ndim != 4 or images.shape[:2] != (len(numbers), 3):
            return f"{name} gave {tuple(images.shape)} for {len(numbers)} numbers"
        shapes[name] = tuple(images.shape[1:])
    if len(set(shapes.values())) > 1:
        return f"the shapes are {shapes}"
    return None


def _depends_on_order(data: Data) -> str | None:
    for name, split in _splits(data):
        numbers = _sample(split)
        images = split.images.fetch(numbers)
        backwards = split.images.fetch(numbers.flip(0)).flip(0)
        one_by_one = torch.cat([split.images.fetch(number) for number in numbers.split(1)])
        if not torch.equal(images, backwards) or not torch.equal(images, one_by_one):
            return f"an image of {name} is another in another call"
        # A collection that sorts the numbers, or makes them unique, would return another batch.
        twice = split.images.fetch(numbers[:1].repeat(2))
        if not torch.equal(twice[0], twice[1]):
            return f"one number of {name}, twice in a call, gave two images"
    return None


def _not_thread_safe(data: Data) -> str | None:
    numbers = _sample(data.train)
    expected = data.train.images.fetch(numbers)
    with ThreadPoolExecutor(4) as executor:
        # Races do not show every time; three rounds are still fast.
        for _ in range(3):
            parts = list(executor.map(data.train.images.fetch, numbers.split(2)))
            if not torch.equal(torch.cat(parts), expected):
                return "four threads gave other images"
    return None


def _wrong_optional_members(data: Data) -> str | None:
    for name, split in _splits(data):
        images = split.images
        fetched = images.fetch(_sample(split))
        if images.is_gray and not (fetched == fetched[:, :1]).all():
            return f"{name} says is_gray, and its channels differ"
        if isinstance(images, WritableImages) and not torch.equal(fetch_batch(images, _sample(split)), fetched):
            return f"fetch_into of {name} gave other images than fetch"
    return None


def _moves_global_rng(data: Data) -> str | None:
    return global_rng_moved(lambda: data.train.images.fetch(_sample(data.train)))


DATASET_REQUIREMENTS = (
    Requirement(
        "it gives Data with bank and query or neither, a protocol, and a crop in (0, 1]",
        _not_data,
        "Training cannot read it, or a result does not say what it was measured on.",
    ),
    Requirement(
        "every split has images and as many labels",
        _wrong_lengths,
        "Images get the labels of others, or training and evaluation stop.",
    ),
    Requirement(
        "labels are int64, -1 for none, and below the number of class names",
        _wrong_labels,
        "Classes are counted wrongly, and the table of classes has no name for some.",
    ),
    Requirement(
        "every class of the queries is in the bank",
        _queries_without_class_in_bank,
        "Queries of that class can never be right, and the headline number is too low.",
    ),
    Requirement(
        "images subclass reptk.data.Images",
        _not_images,
        "They lack the optional members that training and the report use.",
    ),
    Requirement(
        "fetch(numbers (n,)) gives (n, 3, H, W) uint8, of one size in all splits",
        _wrong_shape,
        "Batches cannot be put together, or views get colors of another scale.",
    ),
    Requirement(
        "an image depends on its number alone",
        _depends_on_order,
        "Images get the labels of others, and a run cannot be repeated: draw nothing at random, and keep the order of numbers.",
    ),
    Requirement(
        "several threads may fetch at once",
        _not_thread_safe,
        "With train.workers, batches hold wrong images: open a file in each call instead of sharing one.",
    ),
    Requirement(
        "is_gray and fetch_into agree with fetch",
        _wrong_optional_members,
        "The raw-pixel baseline, or training, sees other images than evaluation.",
    ),
    Requirement(
        "the random states of torch, NumPy and Python are left as they were",
        _moves_global_rng,
        "Dropout and other parts then draw other numbers, so that runs cannot be compared at one seed.",
    ),
)
"""What a data set must do."""
