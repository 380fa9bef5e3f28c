"""Images in files or in shards: decoded whenever they are fetched, or once into a cache on disk."""

import copy
import hashlib
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge
from numpy.typing import NDArray
from torch import Tensor

from reptk.core import user_folders
from reptk.core.counts import format_count
from reptk.core.errors import DataError
from reptk.core.files import expand_home, real_path
from reptk.core.mapped_arrays import chunks, empty, numbers_where, stored
from reptk.data.bad_samples import tolerated_unreadable
from reptk.data.decoding.decode import (
    DECODE_VERSION,
    DEFAULT_OPTIONS,
    Jpeg,
    PixelOptions,
    decode_picture,
    decoder,
    versions_of,
)
from reptk.data.decoding.resize import (
    DEFAULT_PREPROCESSING,
    DEFAULT_SQUARE,
    Color,
    Pixels,
    Preprocessing,
    ResizeMode,
    SquareOptions,
    write_square,
)
from reptk.data.images.cache import DecodedCache, file_key, record_key
from reptk.data.protocol import Images, WritableImages, WritableSubset, block_starts_of_subset
from reptk.data.records.record_source import Record, Records

ImageSize = Annotated[int, Ge(8)]
"""Pixels of the shorter side to which every image is decoded."""

OnError = Literal["skip", "stop"]
"""What happens if an image cannot be read: it is skipped, or the run stops."""


class ImageFiles(WritableImages):
    """Image files, or images of a `RecordSource`, decoded when they are fetched.

    The paths are held as the bytes of one array, or the numbers of the rows in one: millions of Python objects would need
    several times the memory, and would be copied into every forked process.

    Pillow's warnings about unusual files are ignored from then on, in the whole process: warning filters are global, and
    the decoding threads cannot have their own.

    Args:
        paths: the files or the rows, in order.
        size: side in pixels of the square that every image becomes.
        jpeg: the JPEG decoder; `auto` is simplejpeg if it is installed.
        options: what the pixels of unusual files become.
        square: how they become squares.
        in_one_step: pad and squash files when they are decoded; otherwise pictures with proportions, as a cache has them.
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
        in_one_step: bool = False,
        on_error: OnError = "stop",
        max_unreadable: int | None = None,
    ) -> None:
        if max_unreadable is None:
            max_unreadable = tolerated_unreadable(len(paths))
        self.size = size
        self.options = options
        self.square = square
        self.in_one_step = in_one_step
        self.on_error = on_error
        self.max_unreadable = max_unreadable
        self._reasons: dict[int, str] = {}
        self.jpeg = decoder(jpeg)
        self.decoded_by = versions_of(self.jpeg)
        self._sources: _PathArray | _RowArray
        if isinstance(paths, Records):
            self._sources = _RowArray(paths)
        else:
            self._sources = _PathArray(paths)
        # 0 for a ratio that is not known; pages of a large array that are never written take no memory.
        self._aspect_ratios = empty(len(paths), np.float32)
        warnings.filterwarnings("ignore", module=r"PIL\.")

    def __len__(self) -> int:
        return len(self._aspect_ratios)

    def path(self, number: int) -> Path | None:
        source = self._sources[number]
        return source if isinstance(source, Path) else None

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
        # A shallow copy: what is known of unreadable images is known to both.
        images = copy.copy(self)
        images.square = self.square.with_resize(resize, border_color)
        return images

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
        if not self.in_one_step:
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


class _PathArray:
    """Many paths as the bytes of one array."""

    def __init__(self, paths: Sequence[Path]) -> None:
        lengths = np.fromiter((len(os.fsencode(path)) for path in paths), np.int64, len(paths))
        self._ends = stored([np.zeros(1), lengths.cumsum()], len(paths) + 1, np.int64)
        pieces = (_encoded(paths[part]) for part in chunks(len(paths)))
        self._bytes = stored(pieces, int(self._ends[-1]), np.uint8)

    def __getitem__(self, number: int) -> Path:
        encoded = self._bytes[self._ends[number] : self._ends[number + 1]]
        return Path(os.fsdecode(encoded.tobytes()))

    def contents(self, numbers: NDArray[np.int64]) -> Sequence[Path]:
        """Return the paths, which decoding opens."""
        return [self[number] for number in numbers.tolist()]

    def files(self) -> list[Path]:
        return [self[number] for number in range(len(self._ends) - 1)]

    def block_starts(self) -> None:
        return None


def _encoded(paths: Sequence[Path]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(os.fsencode(path) for path in paths), np.uint8)


class _RowArray:
    """Many images of the same source, by their numbers."""

    def __init__(self, rows: Records) -> None:
        self._rows = rows

    def __getitem__(self, number: int) -> Record:
        return self._rows[number]

    def contents(self, numbers: NDArray[np.int64]) -> Sequence[bytes | DataError]:
        return self._rows.source.contents(self._rows.numbers[numbers].tolist())

    def files(self) -> list[Path]:
        return self._rows.source.paths

    def block_starts(self) -> NDArray[np.int64] | None:
        return block_starts_of_subset(self._rows.source.block_starts(), self._rows.numbers)


@dataclass(frozen=True)
class FileReader:
    """How the files of a data set, or the images in its shards, become images of one size.

    Args:
        size: side in pixels.
        jpeg: the JPEG decoder.
        cache_folder: the folder of the decoded images; None to decode whenever an image is fetched.
        options: what the pixels of unusual files become.
        on_error: whether images that cannot be read are skipped.
        preprocessing: what evaluation does with the images; training uses the same interpolation.
    """

    size: int
    jpeg: Jpeg
    cache_folder: Path | None = None
    options: PixelOptions = DEFAULT_OPTIONS
    on_error: OnError = "stop"
    preprocessing: Preprocessing = DEFAULT_PREPROCESSING

    def read(self, splits: Sequence[Sequence[Path] | Records]) -> list[Images]:
        """Return the images of each split. The splits share one cache, in which every file is once.

        Raises:
            DataError: a file is gone, or cannot be decoded into the cache.
            EnvironmentProblem: the cache cannot be written, or simplejpeg is requested and not installed.
        """
        distinct = _distinct(splits)
        # Of all splits together: a small split must not be stopped by one file.
        max_unreadable = tolerated_unreadable(len(distinct))
        if self.cache_folder is None:
            return [self._files(paths, max_unreadable) for paths in splits]
        files = self._files(distinct, max_unreadable)
        decoding = f"{files.decoded_by}, {self.size} px, decode {DECODE_VERSION}"
        if self.options != DEFAULT_OPTIONS:
            decoding += f", {self.options}"
        decoding += f", {self.preprocessing.interpolation}"
        if not self.preprocessing.reduce_jpeg:
            decoding += ", JPEG not reduced"
        keys = [self._key(path, decoding) for path in distinct]
        cache = DecodedCache(files, keys, self.cache_folder)
        return [WritableSubset(cache, torch.from_numpy(_places(paths, distinct))) for paths in splits]

    def _key(self, path: Path | Record, decoding: str) -> str:
        """Return the key of a file or a row in the cache.

        A table may list files that do not exist, which are skipped like others that cannot be read.
        """
        if isinstance(path, Record):
            return record_key(path, decoding)
        if self.on_error == "skip" and not path.exists():
            return hashlib.blake2b(os.fsencode(path.absolute()), digest_size=16).hexdigest()
        return file_key(path, decoding)

    def _files(self, paths: Sequence[Path] | Records, max_unreadable: int) -> ImageFiles:
        return ImageFiles(
            paths,
            self.size,
            self.jpeg,
            options=self.options,
            square=SquareOptions(
                interpolation=self.preprocessing.interpolation, reduce_jpeg=self.preprocessing.reduce_jpeg
            ),
            on_error=self.on_error,
            max_unreadable=max_unreadable,
        )


def _distinct(splits: Sequence[Sequence[Path] | Records]) -> Sequence[Path] | Records:
    """Return the images of all splits, each once, and sorted: the fingerprint of a cache does not depend on the splits."""
    first = splits[0]
    if not isinstance(first, Records):
        return sorted({path for paths in splits for path in paths})
    is_used = empty(len(first.source), np.bool_)
    for rows in splits:
        for part in chunks(len(rows)):
            is_used[rows.numbers[part]] = True
    return Records(first.source, numbers_where(is_used))


def _places(paths: Sequence[Path] | Records, distinct: Sequence[Path] | Records) -> NDArray[np.int64]:
    """Return where each image of a split stands among the distinct images."""
    if isinstance(paths, Records):
        pieces = (np.searchsorted(distinct.numbers, paths.numbers[part]) for part in chunks(len(paths)))
        return stored(pieces, len(paths), np.int64)
    number_of = {path: number for number, path in enumerate(distinct)}
    return np.array([number_of[path] for path in paths], np.int64)


def cache_folder(cache: bool | str, name: str, root: Path, size: int) -> Path | None:
    """Return the folder in which `data.cache` stores the decoded images of a data set; None if it is false.

    Args:
        cache: true for the user's cache folder, or a folder.
        name: of the data set.
        root: of its files.
        size: side in pixels of the decoded images.
    """
    if cache is False:
        return None
    if cache is True:
        parent = user_folders.cache_folder()
    else:
        parent = expand_home(cache)
    root = real_path(root)
    # Folders with the same name in different places have different caches.
    digest = hashlib.blake2b(os.fsencode(root), digest_size=4).hexdigest()
    return parent.absolute() / f"{name}-{root.name}-{size}px-{digest}"
