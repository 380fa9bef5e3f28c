"""Images in Parquet shards: decoded whenever they are fetched, or once into a cache on disk."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reptk.core.errors import DataError
from reptk.data.cache import DecodedCache, file_key
from reptk.data.decode import DEFAULT_OPTIONS, Jpeg, PixelOptions, decode_into, decoder, versions_of
from reptk.data.image_files import OnError, UnreadableImages, decoding_record, tolerated_unreadable
from reptk.data.parquet_shards import ParquetShards, ShardRow
from reptk.data.protocol import Images, WritableImages, WritableSubset


class ShardImages(WritableImages):
    """The images of Parquet shards, numbered as their rows.

    Args:
        shards: the files.
        size: side in pixels of the square that every image is decoded to.
        jpeg: the JPEG decoder; `auto` is simplejpeg if it is installed.
        options: what the pixels of unusual files become.
        on_error: "skip": an image that cannot be read is black, and `unreadable` says why; "stop": it raises a DataError.
        max_unreadable: how many images may be skipped.

    Raises:
        EnvironmentProblem: `jpeg` is simplejpeg, and it is not installed.
    """

    def __init__(
        self,
        shards: ParquetShards,
        size: int,
        jpeg: Jpeg = "auto",
        *,
        options: PixelOptions = DEFAULT_OPTIONS,
        on_error: OnError = "stop",
        max_unreadable: int = 0,
    ) -> None:
        self.shards = shards
        self.size = size
        self.options = options
        self.jpeg = decoder(jpeg)
        self.decoded_by = versions_of(self.jpeg)
        self._unreadable = UnreadableImages(on_error, max_unreadable)

    def __len__(self) -> int:
        return len(self.shards)

    def fetch_into(self, numbers: Tensor, out: NDArray[np.uint8]) -> None:
        for number, square in zip(numbers.tolist(), out, strict=True):
            if number not in self._unreadable.reasons:
                self._decode(number, square)
            if number in self._unreadable.reasons:
                square[:] = 0

    def unreadable(self, numbers: Tensor) -> dict[int, str]:
        return self._unreadable.among(numbers)

    def _decode(self, number: int, square: NDArray[np.uint8]) -> None:
        """Decode an image, or note why it cannot be read."""
        try:
            content = self.shards.content(number)
            decode_into(content, square, self.jpeg, options=self.options, name=self.shards.name(number))
        except DataError as error:
            self._unreadable.add(number, error)


@dataclass(frozen=True)
class ShardReader:
    """How the rows of Parquet shards become images; see `FileReader`."""

    size: int
    jpeg: Jpeg
    cache_folder: Path | None = None
    options: PixelOptions = DEFAULT_OPTIONS
    on_error: OnError = "stop"

    def read(self, splits: Sequence[Sequence[ShardRow]]) -> list[Images]:
        """Return the images of each split. The splits share one cache, in which every row is once.

        Raises:
            DataError: a file is gone, or an image cannot be decoded into the cache.
            EnvironmentProblem: the cache cannot be written, or simplejpeg is requested and not installed.
        """
        [*rows_of_all] = (row for rows in splits for row in rows)
        shards = rows_of_all[0].shards
        distinct = sorted({row.number for row in rows_of_all})
        images = ShardImages(
            shards,
            self.size,
            self.jpeg,
            options=self.options,
            on_error=self.on_error,
            max_unreadable=tolerated_unreadable(len(distinct)),
        )
        if self.cache_folder is None:
            return [WritableSubset(images, _long(row.number for row in rows)) for rows in splits]
        decoding = decoding_record(images.decoded_by, self.size, self.options)
        file_keys = [file_key(path, decoding) for path in shards.paths]
        keys = []
        for number in distinct:
            file = shards.file_of(number)
            keys.append(_row_key(file_keys[file], number - int(shards.file_starts[file])))
        cache = DecodedCache(WritableSubset(images, _long(distinct)), keys, self.cache_folder)
        position_of = {number: position for position, number in enumerate(distinct)}
        return [WritableSubset(cache, _long(position_of[row.number] for row in rows)) for rows in splits]


def _long(numbers: Iterable[int]) -> Tensor:
    return torch.tensor(list(numbers), dtype=torch.long)


def _row_key(file_key: str, row: int) -> str:
    return hashlib.blake2b(os.fsencode(f"{file_key} {row}"), digest_size=16).hexdigest()
