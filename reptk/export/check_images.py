"""Images with which a written model is compared with the encoder, and the comparison of their features."""

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from reptk.core import rng
from reptk.core.counts import format_count
from reptk.core.errors import DataError, NumericalError, ReptkError
from reptk.core.images import resize_to_square
from reptk.data.images.image_files import ImageFiles
from reptk.embeddings.encoding import image_sources
from reptk.embeddings.encoding.embedder import Embedder

MIN_COSINE = 0.9999
"""Between the features of an image by the encoder and by what was written. Rounding alone gives 0.999999 and more."""


class CheckImages(NamedTuple):
    """Images as the encoder takes them.

    pixels: (n, 3, H, W) uint8.
    description: how many of what, for a message.
    """

    pixels: Tensor
    description: str


def read_check_images(embedder: Embedder, table: dict[str, Any], data: str | None, count: int) -> CheckImages:
    """Return images of a data set, spread over it, with the encoder's preprocessing.

    Args:
        embedder: the encoder.
        table: of the data set that it was trained on; empty if that is not known.
        data: a folder, a table or a data set's name, in its place; None for none.
        count: of the images, at most.

    Returns:
        Random images if the data set of the run cannot be read, after a warning.

    Raises:
        DataError, UsageError: what `data` names cannot be read, or none of the images that were chosen can.
    """
    if data is not None:
        table = image_sources.data_table(data)
    if not table:
        return _random_images(embedder, count, "the model does not say what it was trained on")
    try:
        return _read(embedder, table, count)
    except ReptkError as cause:
        if data is not None:
            raise
        return _random_images(embedder, count, str(cause))


def _read(embedder: Embedder, table: dict[str, Any], count: int) -> CheckImages:
    size = embedder.encoder.config["size"]
    preprocessing = embedder.preprocessing.updated(table)
    if table.get("name") == "folder":
        table = {"size": preprocessing.decode_px(size), **table}
    source = image_sources.from_data_set(table, preprocessing=preprocessing)
    group = source.groups[0]
    numbers = torch.linspace(0, len(group) - 1, min(count, len(group))).long()
    images = group.images.resized(source.preprocessing.resize)
    if isinstance(images, ImageFiles):
        images.decode_as(preprocessing.square_options(size, embedder.encoder.border_color))
    pixels = images.fetch(numbers)
    unreadable = images.unreadable(numbers)
    if len(unreadable) == len(numbers):
        name = table.get("root") or table["name"]
        raise DataError(
            f"none of {format_count(len(numbers), 'image')} of {name} can be read: {next(iter(unreadable.values()))}. To "
            "compare more images: --images N"
        )
    is_read = torch.tensor([number not in unreadable for number in numbers.tolist()])
    crop, resize, interpolation, _ = source.preprocessing
    floats = resize_to_square(pixels[is_read], size, crop, resize, interpolation, embedder.encoder.border_color)
    pixels = (255 * floats).round().to(torch.uint8)
    return CheckImages(pixels, f"{format_count(len(pixels), 'image')} of {table.get('root') or table['name']}")


def _random_images(embedder: Embedder, count: int, reason: str) -> CheckImages:
    warnings.warn(f"checked with random images, since {reason}. To name others: --data FOLDER", stacklevel=5)
    size = embedder.encoder.config["size"]
    shape = (count, 3, size, size)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=rng.generator(0, "check images"))
    return CheckImages(pixels, format_count(count, "random image"))


def check_batches(images: CheckImages) -> list[Tensor]:
    """Return batches for a program that takes any number of images: a single one, and several together.

    Returns:
        Two tensors (b, 3, H, W), with b = 1 and b >= 2. If there is only one image, it is repeated.
    """
    several = images.pixels
    if len(several) == 1:
        several = several.repeat(2, 1, 1, 1)
    return [images.pixels[:1], several]


def compare(expected: Tensor, actual: Tensor, images: CheckImages, program: str) -> str:
    """Compare features (n, F) of images by the encoder with those by another program. Returns a line to print.

    Raises:
        NumericalError: they differ.
    """
    difference = (expected - actual).abs().max().item()
    cosine = functional.cosine_similarity(expected.double(), actual.double()).min().item()
    if not cosine >= MIN_COSINE:  # also NaN
        raise NumericalError(
            f"nothing was written: {program} computes other features than the encoder (cosine {cosine:.4f}, largest "
            f"difference {difference:.2g}, {images.description})"
        )
    if torch.equal(expected, actual):
        return f"  checked by {program} with {images.description}: the same features, bit for bit"
    return (
        f"  checked by {program} with {images.description}: cosine at least {cosine:.7f}, largest difference "
        f"{difference:.2g} of values up to {expected.abs().max().item():.2g}"
    )
