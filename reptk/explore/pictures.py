"""Pictures of the images that embeddings stand for, as content of JPEG and PNG files, by row number."""

import base64
import io
import threading
from typing import NamedTuple

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from reptk.core.errors import ReptkError
from reptk.data import Split, num_cpus
from reptk.data.decoding.decode import decode_picture, decoder
from reptk.data.decoding.resize import PAGE_COLOR, SquareOptions
from reptk.embeddings import Embeddings
from reptk.embeddings.viewing.embedding_images import EmbeddingImages

THUMBNAIL_PX = 128
LARGE_PX = 640
MAX_LOSSLESS_PX = 64
"""Larger pictures are JPEG, which shows its blocks in small ones."""

JPEG_QUALITY = 85


class PictureFile(NamedTuple):
    """The content of an image file, and its media type."""

    content: bytes
    media_type: str


class Pictures:
    """Pictures by row number. Several threads may read them; as many decode at once as there are processors.

    Args:
        embeddings: whose images they are.
        split: images of a data set, which `rows` are numbers of; None for images that the embeddings themselves lead to.
        numbers: (n,) of each row in the split.
    """

    def __init__(self, embeddings: Embeddings, split: Split | None = None, numbers: Tensor | None = None) -> None:
        self._embeddings = embeddings
        self._split = split
        self._numbers = numbers
        self._images = EmbeddingImages(embeddings)
        self._decoding = threading.Semaphore(num_cpus())
        self._data_set = threading.Lock()  # data sets are opened once, and read by one thread at a time

    def read(self, row: int, side_px: int) -> PictureFile | None:
        """Return the picture of a row with its longer side at `side_px`, or smaller; None if it cannot be read."""
        try:
            return self._read(row, side_px)
        except (ReptkError, OSError, ValueError):
            return None

    def _read(self, row: int, side_px: int) -> PictureFile | None:
        if self._split is not None:
            with self._data_set:
                resized = self._split.images.resized("pad", PAGE_COLOR)
                return _encode(resized.fetch(self._numbers[row : row + 1])[0].cpu(), side_px)
        path = self._embeddings.file(row)
        if path is None:
            with self._data_set:
                return _from_data_uri(self._images.data_uri(row))
        with self._decoding:
            picture = decode_picture(path, side_px, decoder("auto"), square=SquareOptions("pad"))
        return _encode(rearrange(torch.from_numpy(picture.pixels), "h w c -> c h w"), side_px)


def _encode(image: Tensor, side_px: int) -> PictureFile:
    """Return (3, H, W) uint8 as a PNG if it is small, else as a JPEG of at most `side_px` pixels."""
    picture = Image.fromarray(rearrange(image, "c h w -> h w c").contiguous().numpy())
    buffer = io.BytesIO()
    if max(picture.size) <= MAX_LOSSLESS_PX:
        picture.save(buffer, "PNG")
        return PictureFile(buffer.getvalue(), "image/png")
    picture.thumbnail((side_px, side_px))
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return PictureFile(buffer.getvalue(), "image/jpeg")


def _from_data_uri(uri: str) -> PictureFile | None:
    head, _, content = uri.partition(";base64,")
    if not content:
        return None
    return PictureFile(base64.b64decode(content), head.removeprefix("data:"))
