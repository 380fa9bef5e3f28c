"""Thumbnails of the images that embeddings stand for: from their files, or from the data set that they come from."""

from functools import cached_property
from pathlib import Path

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from reptk import config
from reptk.config.registry import DATASETS
from reptk.core.errors import ReptkError
from reptk.data import Data
from reptk.data.decoding.decode import decode
from reptk.data.decoding.resize import PAGE_COLOR, SquareOptions
from reptk.data.layouts.open_layout import open_layout
from reptk.data.records.record_source import Record, Records, RecordSource
from reptk.embeddings.embeddings import Embeddings
from reptk.embeddings.retrieval.store_index import StoredImages
from reptk.report.data_uri import encode_data_uri

SIDE_PX = 128
IGNORED_ARGUMENTS = ("split", "cache")
"""Arguments of the data set that are not taken over: a file of embeddings must not decide where a cache is written."""


class EmbeddingImages:
    """Data URIs of the images that embeddings stand for; an empty string for an image that is gone.

    Args:
        embeddings: the embeddings.
        side_px: longest side of an image in pixels.
    """

    def __init__(self, embeddings: Embeddings | StoredImages, side_px: int = SIDE_PX) -> None:
        self.embeddings = embeddings
        self.side_px = side_px
        # Between the number of an image in its source and its row, which differ by what was skipped before it.
        self._offset = 0

    def data_uri(self, number: int) -> str:
        """Return the image of an embedding."""
        path = self.embeddings.file(number)
        if path is not None:
            return self.data_uri_of_file(path)
        return self._data_uri_from_data(number, self.embeddings.ids[number])

    def data_uri_of_file(self, path: Path) -> str:
        """Return the image in a file."""
        try:
            square = SquareOptions("pad", border_color=PAGE_COLOR)
            return thumbnail_data_uri(decode(path, self.side_px, square=square), self.side_px)
        except ReptkError:
            return ""

    def _data_uri_from_data(self, row: int, image_id: str) -> str:
        """Return the image of an id such as `query/17`, which names a split of the data set and a number in it."""
        split_name, _, number = image_id.partition("/")
        split = None
        if self._data is not None:
            split = self._data.splits.get(split_name)
        try:
            if split is None and self._is_folder:
                return self._data_uri_of_row(row, image_id)
            if split is None or not number.isdigit() or int(number) >= len(split.images):
                return ""
            image = split.images.resized("pad", PAGE_COLOR).fetch(torch.tensor([int(number)]))[0]
            return thumbnail_data_uri(image, self.side_px)
        except ReptkError:
            return ""

    def _data_uri_of_row(self, row: int, image_id: str) -> str:
        """Return the image of an id in Parquet files or tar shards, all of which were embedded."""
        rows = self._rows
        number = None
        if rows is not None:
            number = self._number_of(rows.source, row, image_id)
        if number is None:
            return ""
        content = Record(number, rows.source).read_bytes()
        square = SquareOptions("pad", border_color=PAGE_COLOR)
        return thumbnail_data_uri(decode(content, self.side_px, square=square), self.side_px)

    def _number_of(self, source: RecordSource, row: int, image_id: str) -> int | None:
        """Return the number in a source of the image of a row; None if it is gone."""
        # Most rows are in the order of the source, in which a search for every id takes long.
        expected = row + self._offset
        if 0 <= expected < len(source) and source.image_id(expected) == image_id:
            return expected
        number = source.find(image_id)
        if number is not None:
            self._offset = number - row
        return number

    @cached_property
    def _rows(self) -> Records | None:
        """The images in shards that were embedded; None if they are in files of their own."""
        sources = open_layout(Path(self.embeddings.about["data"]["root"]), "none").files.sources
        return sources if isinstance(sources, Records) else None

    @property
    def _is_folder(self) -> bool:
        """Whether the record names a folder of images."""
        part = self.embeddings.about.get("data")
        return isinstance(part, dict) and part.get("name") == "folder" and isinstance(part.get("root"), str)

    @cached_property
    def _data(self) -> Data | None:
        """The data set that the images come from; None if it cannot be opened without a download."""
        try:
            # The table comes from a file of any origin: whatever it says, the worst case is a page without images.
            part = dict(self.embeddings.about.get("data"))
            for name in IGNORED_ARGUMENTS:
                part.pop(name, None)
            # To look at a page must not start a download.
            if "download" in part:
                part["download"] = False
            return config.build(DATASETS, config.complete("data", part))
        except (ReptkError, TypeError, ValueError, OSError):
            return None


def thumbnail_data_uri(image: Tensor, side_px: int = SIDE_PX) -> str:
    """Return (3, H, W) uint8 as a data URI of about `side_px` pixels.

    A small image is enlarged by a whole factor without interpolation, and stored without loss.
    """
    picture = Image.fromarray(rearrange(image, "c h w -> h w c").contiguous().cpu().numpy())
    factor = side_px // max(picture.size)
    # Enlarged here, since a browser would blur the pixels of a small image.
    if factor > 1:
        size = (factor * picture.width, factor * picture.height)
        return encode_data_uri(picture.resize(size, Image.Resampling.NEAREST), "PNG", optimize=True)
    if max(picture.size) > side_px:
        picture.thumbnail((side_px, side_px))
    return encode_data_uri(picture, "JPEG", quality=85)
