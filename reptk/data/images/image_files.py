"""Images in files or in shards, decoded whenever they are fetched."""

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reptk.core import mapped_arrays
from reptk.core.counts import format_count
from reptk.core.errors import DataError
from reptk.data.bad_samples import tolerated_unreadable
from reptk.data.decoding.decode import Jpeg, decode_picture, decoder, versions_of
from reptk.data.decoding.pixel_options import DEFAULT_OPTIONS, PixelOptions
from reptk.data.decoding.resize import DEFAULT_SQUARE, Color, Pixels, ResizeMode, SquareOptions, write_square
from reptk.data.images.file_lists import PathList, RecordList
from reptk.data.protocol import WritableImages
from reptk.data.records.record_source import Records

OnError = Literal["skip", "stop"]
"""What happens if an image cannot be read: it is skipped, or the run stops."""


class ImageFiles(WritableImages):
    """Image files, or images of a `RecordSource`, decoded when they are fetched.

    Pillow's warnings about unusual files are ignored from then on, in the whole process: warning filters are global, and
    the decoding threads cannot have their own.

    Args:
        paths: the files or the records, in order.
        size: side in pixels of the square that every image becomes.
        jpeg: the JPEG decoder; `auto` is simplejpeg if it is installed.
        options: what the pixels of unusual files become.
        square: how they become squares.
        resize_on_decode: pad and squash images as they are decoded; by default they are decoded with their proportions, as a
            cache has them, and become squares after that.
        on_error: "skip": an image that cannot be read is black, and `unreadable` says why; "stop": it raises a DataError.
        max_unreadable: how many images may be skipped; by default the larger of 1 % and 10, of few images a fifth.

    Raises:
        EnvironmentProblem: `jpeg` is simplejpeg, and it is not installed.
    """

    def __init__(
        self,
        paths: Sequence[Path] | Records,
        size: int,
        jpeg: Jpeg = "auto",
        *,
        options: PixelOptions = DEFAULT_OPTIONS,
        square: SquareOptions = DEFAULT_SQUARE,
        resize_on_decode: bool = False,
        on_error: OnError = "stop",
        max_unreadable: int | None = None,
    ) -> None:
        if max_unreadable is None:
            max_unreadable = tolerated_unreadable(len(paths))
        self.size = size
        self.options = options
        self.square = square
        self.resize_on_decode = resize_on_decode
        self.on_error = on_error
        self.max_unreadable = max_unreadable
        self._reasons: dict[int, str] = {}
        self.jpeg = decoder(jpeg)
        self.decoded_by = versions_of(self.jpeg)
        self._sources: PathList | RecordList
        if isinstance(paths, Records):
            self._sources = RecordList(paths)
        else:
            self._sources = PathList(paths)
        # 0 for a ratio that is not known; pages of a large array that are never written take no memory.
        self._aspect_ratios = mapped_arrays.zeros(len(paths), np.float32)
        warnings.filterwarnings("ignore", module=r"PIL\.")

    def __len__(self) -> int:
        return len(self._aspect_ratios)

    def path(self, number: int) -> Path | None:
        source = self._sources[number]
        if isinstance(source, Path):
            return source
        return None

    def files(self) -> list[Path]:
        return self._sources.files()

    def block_starts(self) -> NDArray[np.int64] | None:
        return self._sources.block_starts()

    def fetch_into(self, numbers: Tensor, out: NDArray[np.uint8]) -> None:
        # All at once, since some sources read several images faster than one after the other.
        contents = self._sources.contents(numbers.numpy())
        for number, content, pixels in zip(numbers.tolist(), contents, out, strict=True):
            write_square(self._picture_of(number, content), pixels, self.square)

    def picture(self, number: int) -> Pixels:
        """Return an image with its proportions; a black square if it cannot be read, which `unreadable` then says."""
        [content] = self._sources.contents(np.array([number]))
        return self._picture_of(number, content)

    def _picture_of(self, number: int, content: Path | bytes | DataError) -> Pixels:
        if number not in self._reasons:
            try:
                if isinstance(content, DataError):
                    raise content
                return self._decode(number, content)
            except DataError as error:
                if self.on_error == "stop":
                    raise
                self._reasons[number] = str(error)
                self._check_count()
        self._set_aspect_ratio(number, 1.0)
        return np.zeros((self.size, self.size, 3), np.uint8)

    def resized(self, resize: ResizeMode, border_color: Color | None = None) -> "ImageFiles":
        # A shallow copy: both share the dict of unreadable images.
        images = copy.copy(self)
        images.square = self.square.with_resize(resize, border_color)
        return images

    def decode_as(self, square: SquareOptions) -> None:
        """Let the images be padded or squashed as they are decoded, from now on; see `resize_on_decode`."""
        self.resize_on_decode = True
        self.square = square

    def aspect_ratios(self, numbers: Tensor) -> Tensor | None:
        if self.square.resize != "squash":
            return None
        return torch.from_numpy(self._aspect_ratios[numbers.numpy()])

    def unreadable(self, numbers: Tensor) -> dict[int, str]:
        if not self._reasons:
            return {}
        is_unreadable = torch.isin(numbers, torch.tensor(list(self._reasons)))
        return {number: self._reasons[number] for number in numbers[is_unreadable].tolist()}

    def _decode(self, number: int, content: Path | bytes) -> Pixels:
        square = self.square
        if not self.resize_on_decode:
            square = square._replace(resize="crop")
        name = str(self._sources[number])
        picture = decode_picture(content, self.size, self.jpeg, options=self.options, square=square, name=name)
        height, width, _ = picture.pixels.shape
        self._set_aspect_ratio(number, width / height)
        return picture.pixels

    def _set_aspect_ratio(self, number: int, ratio: float) -> None:
        if self.square.resize == "squash":
            self._aspect_ratios[number] = ratio

    def _check_count(self) -> None:
        if len(self._reasons) <= self.max_unreadable:
            return
        # Sorted, since threads note them in any order.
        first = "\n  ".join(self._reasons[number] for number in sorted(self._reasons)[:5])
        raise DataError(
            f"more than {format_count(self.max_unreadable, 'image')} cannot be read, too many to skip them: repair them, or "
            f"take them out. reptk check-data lists all. The first:\n  {first}"
        )
