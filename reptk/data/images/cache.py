"""Decoded images on disk, mapped into memory: built once, verified, and shared by all processes that train on them.

The key of an image consists of its path, size and time of modification, and of how it is decoded. Whatever else changes,
images with a known key are copied from the earlier cache, and only the others are decoded. See `cache_build` for the
files.
"""

import copy
import hashlib
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reptk.core.disk_space import disk_problem, is_disk_full
from reptk.core.errors import DataError, EnvironmentProblem
from reptk.core.threads import num_cpus
from reptk.data.decoding.resize import Color, Pixels, ResizeMode, write_square
from reptk.data.images.cache_build import (
    SPACE_ADVICE,
    UNREADABLE,
    CacheFiles,
    PictureFiles,
    build_cache,
    offsets_of,
    read_records,
    remove_old_builds,
)
from reptk.data.protocol import WritableImages
from reptk.data.records.record_source import Record


class DecodedCache(WritableImages):
    """Images that are decoded once and then read from a file on disk, with their proportions.

    The length, fingerprint and records of the file are checked when it is opened, and each image against its checksum
    when it is first fetched.

    Args:
        images: the images to decode, in order.
        keys: 32 characters for each image; an image with another key is another image.
        folder: where the decoded images are stored.
        workers: number of decoding threads; by default, the number of processor cores.

    Raises:
        EnvironmentProblem: not enough free space, no permission to write, or a file system without locks.
        DataError: an image cannot be read. What was decoded before it is used when the cache is opened again.
    """

    def __init__(self, images: PictureFiles, keys: Sequence[str], folder: Path, *, workers: int | None = None) -> None:
        self.size = images.size
        self.is_gray = images.is_gray
        self.decoded_by = images.decoded_by
        self.folder = folder
        self.square = images.square
        self._images = images
        self._files = CacheFiles(folder, np.array(keys, dtype="S32"), images.size)
        if not self._files.is_complete():
            if workers is None:
                workers = num_cpus()
            try:
                build_cache(self._files, images, workers)
            except OSError as cause:
                if is_disk_full(cause):
                    needed_bytes = self._files.min_bytes
                    raise disk_problem(folder, cause, needed_bytes=needed_bytes, advice=SPACE_ADVICE) from cause
                raise EnvironmentProblem(
                    f"cannot store the decoded images in {folder}: {cause}. Name another folder (data.cache=/path), or "
                    "data.cache=false"
                ) from cause
        remove_old_builds(self._files)
        try:
            self._records = read_records(self._files.records)
            self._offsets = offsets_of(self._records)
            self._is_unreadable = self._records["key"] == UNREADABLE
            # The pages of the file are in memory once, for all processes on this machine.
            # Copy on write, since torch takes only what may be written to; nothing is written.
            self._pixels = np.memmap(self._files.pixels, np.uint8, "c")
        except OSError as cause:
            # Another process with other images in the same folder may have replaced the files a moment ago.
            raise EnvironmentProblem(f"cannot read the decoded images in {folder}: {cause}; start again") from cause
        self._is_verified = np.zeros(len(keys), dtype=bool)

    def __len__(self) -> int:
        return len(self._records)

    def path(self, number: int) -> Path | None:
        return self._images.path(number)

    def files(self) -> list[Path]:
        return self._images.files()

    def block_starts(self) -> NDArray[np.int64] | None:
        return self._images.block_starts()

    def unreadable(self, numbers: Tensor) -> dict[int, str]:
        candidates = numbers[torch.from_numpy(self._is_unreadable[numbers.numpy()])]
        # The files, which may not have been opened since the cache was built, say why.
        for number in candidates.split(1):
            self._images.fetch(number)
        return self._images.unreadable(candidates)

    def fetch_into(self, numbers: Tensor, out: NDArray[np.uint8]) -> None:
        for number, pixels in zip(numbers.tolist(), out, strict=True):
            write_square(self._picture(number), pixels, self.square)

    def resized(self, resize: ResizeMode, border_color: Color | None = None) -> "DecodedCache":
        images = copy.copy(self)
        images.square = self.square.with_resize(resize, border_color)
        return images

    def aspect_ratios(self, numbers: Tensor) -> Tensor | None:
        if self.square.resize != "squash":
            return None
        records = self._records[numbers.numpy()]
        return torch.from_numpy((records["width"] / records["height"]).astype(np.float32))

    def _picture(self, number: int) -> Pixels:
        if self._is_unreadable[number]:
            # Perhaps it can be read by now.
            picture = self._images.picture(number)
            self._records["height"][number], self._records["width"][number] = picture.shape[:2]
            return picture
        record = self._records[number]
        picture = self._pixels[self._offsets[number] : self._offsets[number + 1]]
        if not self._is_verified[number]:
            # The copy is verified, not the mapped file, which another process may be writing to.
            picture = np.array(picture)
            if zlib.crc32(picture) != record["checksum"]:
                raise DataError(
                    f"{self._files.pixels} is damaged (image {number}). Delete {self.folder}; it will be built again"
                )
            self._is_verified[number] = True
        return picture.reshape(record["height"], record["width"], 3)


def file_key(path: Path, decoding: str) -> str:
    """Return the key of an image file as it is now: 32 hexadecimal digits.

    Args:
        path: the file.
        decoding: everything else that its pixels depend on, e.g. the versions of the decoders and the size.

    Raises:
        DataError: the file is gone.
    """
    try:
        stat = path.stat()
    except OSError as cause:
        raise DataError(f"cannot read {path}: {cause}") from cause
    identity = os.fsencode(path.absolute()) + f"\0{stat.st_size} {stat.st_mtime_ns} {decoding}".encode()
    return hashlib.blake2b(identity, digest_size=16).hexdigest()


def record_key(record: Record, decoding: str) -> str:
    """Return the key of an image in Parquet files, tar shards or a table as its file is now; see `file_key`."""
    path, location = record.source.location(record.number)
    return file_key(path, f"{decoding}, {location}")
