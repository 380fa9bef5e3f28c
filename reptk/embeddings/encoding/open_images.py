"""The images that `embed` is called with: opened, and preprocessed as the encoder expects it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reptk import config
from reptk.core.errors import UsageError
from reptk.data.decoding.decode import Jpeg
from reptk.data.images.image_files import ImageFiles
from reptk.embeddings.encoding import image_sources
from reptk.embeddings.encoding.embedder import Embedder, recipe_of
from reptk.embeddings.encoding.image_sources import ImageSource
from reptk.models.encoder import Encoder


def open_images(
    data: str | Path | Tensor | dict[str, Any],
    split: str | None,
    encoder: str | Path | Encoder,
    embedder: Embedder,
    jpeg: Jpeg,
    chosen: dict[str, Any],
) -> ImageSource:
    """Open the `data` of `embed`, of any of its types.

    Args:
        data, split, encoder, jpeg: see `embed`.
        embedder: of the encoder.
        chosen: fields of `Preprocessing` that replace what `data` sets; None for those that do not.

    Raises:
        UsageError: the data is of another type, or its arguments are wrong.
        DataError: there are no images.
    """
    if isinstance(data, Tensor):
        return image_sources.from_images(data, jpeg=jpeg)
    if not isinstance(data, str | Path | Mapping):
        raise UsageError(
            f"data must be a folder, a table, a data set or a tensor (n, 3, H, W) uint8, not {type(data).__name__}; for images "
            "in Python: Encoder.embed"
        )
    preprocessing = embedder.native_preprocessing()
    size = embedder.encoder.config["size"]
    if isinstance(data, str | Path):
        data = image_sources.data_table(str(data))
    table = dict(data)
    config.complete("data", table)  # an error if an argument has a wrong type
    preprocessing = preprocessing.updated(table).updated(chosen)
    if table.get("name") in ("folder", "imagenet", "imagenet100"):
        # A run's own images are decoded at the size that it was trained on.
        trained_on = {}
        if isinstance(encoder, str | Path):
            trained_on = recipe_of(encoder).get("data", {})
        # The crop then has the encoder's size without being resized again.
        decode_px = trained_on.get("size", preprocessing.decode_px(size))
        table = {"size": decode_px, "jpeg": jpeg, **table}
        jpeg = table["jpeg"]  # an argument of the data set goes first
    return image_sources.from_data_set(table, split=split, jpeg=jpeg, preprocessing=preprocessing)


def set_preprocessing(embedder: Embedder, source: ImageSource, chosen: dict[str, Any]) -> None:
    """Let images and later queries be preprocessed alike.

    Args:
        embedder: gets the preprocessing of the images.
        source: the images.
        chosen: as `open_images` takes them.
    """
    # The preprocessing of the images is recorded with the vectors, so that queries get the same.
    embedder.jpeg = source.jpeg
    embedder.preprocessing = source.preprocessing.updated(chosen)
    embedder.decode_px = _side_px(source)
    embedder.options = source.options
    for group in source.groups:
        if isinstance(group.images, ImageFiles):
            # As queries are decoded: in one step, for the center that will be cut out.
            group.images.decode_as(embedder.square_options())


def _side_px(source: ImageSource) -> int:
    """Return the side to which queries are decoded, which is that of the embedded images."""
    images = source.groups[0].images
    if isinstance(images, ImageFiles):
        return images.size  # without decoding one
    first_image = images.fetch(torch.tensor([0]))
    return min(first_image.shape[-2:])
