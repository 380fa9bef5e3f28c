"""Read the files of embeddings once, reduced to a few pixels: which are blank, and what each looks like in gray."""

import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from einops import rearrange
from numpy.typing import NDArray

from reptk.core.errors import DataError
from reptk.core.progress import progress
from reptk.data import num_cpus
from reptk.data.decoding.blank_images import is_blank, may_be_blank
from reptk.data.decoding.decode import decode, decode_picture, decoder, read_image_file
from reptk.data.decoding.pixel_options import PixelOptions
from reptk.data.decoding.resize import MAX_ASPECT_RATIO, Pixels, ResizeMode, SquareOptions, write_square
from reptk.embeddings.embeddings import Embeddings
from reptk.embeddings.encoding.embedder import recorded_options

DECODED_PX = 32
GRAY_PX = 16
BATCH_FILES = 64
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class SmallImages:
    """What is known of n images.

    Args:
        gray: (n, 16, 16) uint8, the whole picture, squashed; zeros for an image that was not read.
        center: (n, 16, 16) uint8, its center square.
        is_blank: (n,) bool, see `reptk.data.decoding.blank_images`.
        is_read: (n,) bool; false for what is no file, or cannot be read.
    """

    gray: NDArray[np.uint8]
    center: NDArray[np.uint8]
    is_blank: NDArray[np.bool_]
    is_read: NDArray[np.bool_]

    @classmethod
    def unread(cls, count: int) -> "SmallImages":
        """Return what is known of images that were not read: nothing."""
        gray = np.zeros((count, GRAY_PX, GRAY_PX), np.uint8)
        return cls(gray, gray.copy(), np.zeros(count, bool), np.zeros(count, bool))


def read_small_images(embeddings: Embeddings) -> SmallImages:
    """Read all files of embeddings; images that are not files, or are gone, are left out."""
    count = len(embeddings)
    images = SmallImages.unread(count)
    if embeddings.paths is None:
        return images
    options = options_of(embeddings)
    with warnings.catch_warnings(), progress("reading images", count) as advance:
        warnings.simplefilter("ignore")  # about unusual files; they were embedded with the same warnings
        start = 0
        for batch in _read_batches([embeddings.file(row) for row in range(count)], options):
            for image in batch:
                images.gray[image.row] = image.gray
                images.center[image.row] = image.center
                images.is_blank[image.row] = image.is_blank
                images.is_read[image.row] = True
            size = min(BATCH_FILES, count - start)
            advance(size)
            start += size
    return images


def options_of(embeddings: Embeddings) -> PixelOptions:
    """Return how the files of embeddings were decoded; the defaults for embeddings that do not say it."""
    preprocessing = embeddings.about.get("preprocessing")
    if not isinstance(preprocessing, dict):
        return PixelOptions()
    return recorded_options(preprocessing)


def read_square(file: Path | None, size_px: int, options: PixelOptions) -> NDArray[np.uint8] | None:
    """Return the whole picture in a file, squashed into a square (size, size, 3); None if it cannot be read."""
    if file is None:
        return None
    try:
        square = decode(file, size_px, "auto", options, SquareOptions("squash"))
    except DataError:
        return None
    return rearrange(square, "c h w -> h w c").numpy()


class _SmallImage(NamedTuple):
    row: int
    gray: NDArray[np.uint8]
    center: NDArray[np.uint8]
    is_blank: bool


def _read_batches(files: Sequence[Path], options: PixelOptions) -> Iterator[list[_SmallImage]]:
    """Yield what could be read of each batch of files, in order; a few batches are read ahead."""

    def read_batch(start: int) -> list[_SmallImage]:
        batch = []
        for row in range(start, min(start + BATCH_FILES, len(files))):
            image = _read(row, files[row], options)
            if image is not None:
                batch.append(image)
        return batch

    workers = num_cpus()
    with ThreadPoolExecutor(workers) as pool:
        pending: list[Future[list[_SmallImage]]] = []
        for start in range(0, len(files), BATCH_FILES):
            pending.append(pool.submit(read_batch, start))
            if len(pending) > 2 * workers:
                yield pending.pop(0).result()
        for future in pending:
            yield future.result()


def _read(row: int, file: Path | None, options: PixelOptions) -> _SmallImage | None:
    if file is None:
        return None
    try:
        content = read_image_file(file, options)
        picture = decode_picture(content, DECODED_PX, decoder("auto"), options=options).pixels
        whole = picture
        if max(picture.shape) >= MAX_ASPECT_RATIO * DECODED_PX:
            # It may be the middle of a longer one.
            squash = SquareOptions("squash")
            whole = decode_picture(content, DECODED_PX, decoder("auto"), options=options, square=squash).pixels
    except (OSError, DataError):
        return None
    whole, center = _square(whole, "squash"), _square(picture, "crop")
    blank = may_be_blank(whole) and is_blank(content, options)
    return _SmallImage(row, _gray(whole), _gray(center), blank)


def _square(picture: Pixels, resize: ResizeMode) -> Pixels:
    square = np.empty((DECODED_PX, DECODED_PX, 3), np.uint8)
    write_square(picture, square, SquareOptions(resize))
    return square


def _gray(square: NDArray[np.uint8]) -> NDArray[np.uint8]:
    luma = square @ LUMA
    factor = DECODED_PX // GRAY_PX
    reduced = luma.reshape(GRAY_PX, factor, GRAY_PX, factor).mean(axis=(1, 3))
    return reduced.round().astype(np.uint8)
