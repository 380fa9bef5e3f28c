"""Images in files of their own: decoded whenever they are fetched, or once into a cache on disk."""

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

from reptk.core.errors import DataError
from reptk.data.cache import DecodedCache, default_folder, file_key
from reptk.data.decode import (
    DECODE_VERSION,
    DEFAULT_OPTIONS,
    Jpeg,
    PixelOptions,
    decode_into,
    decoder,
    versions_of,
)
from reptk.data.protocol import Images, WritableImages, WritableSubset

ImageSize = Annotated[int, Ge(8)]
"""Side in pixels of the square that every image is decoded to."""

OnError = Literal["skip", "stop"]
"""What happens if an image cannot be read: it is skipped, or the run stops."""

MAX_UNREADABLE_SHARE = 0.01
MAX_UNREADABLE_OF_FEW = 10
"""More unreadable images than this share, and than this number, stop a run that skips them. Of few images at most a fifth."""


def tolerated_unreadable(count: int) -> int:
    """Return how many of `count` images may be unreadable without stopping a run that skips them."""
    return int(max(MAX_UNREADABLE_SHARE * count, min(MAX_UNREADABLE_OF_FEW, count / 5)))


def decoding_record(decoded_by: str, size: int, options: PixelOptions) -> str:
    """Return all that the pixels of an image depend on besides its bytes, as part of its key in a cache."""
    record = f"{decoded_by}, {size} px, decode {DECODE_VERSION}"
    if options != DEFAULT_OPTIONS:
        record += f", {options}"
    return record


class UnreadableImages:
    """Why some images of a collection cannot be read, by number.

    Args:
        on_error: "stop": the first one raises its DataError.
        max_unreadable: more of them raise a DataError.
    """

    def __init__(self, on_error: OnError, max_unreadable: int) -> None:
        self.on_error = on_error
        self.max_unreadable = max_unreadable
        self.reasons: dict[int, str] = {}

    def add(self, number: int, error: DataError) -> None:
        """Note an image that cannot be read, or raise a DataError."""
        if self.on_error == "stop":
            raise error
        self.reasons[number] = str(error)
        if len(self.reasons) <= self.max_unreadable:
            return
        # Sorted, since threads note them in any order.
        first = "\n  ".join(self.reasons[number] for number in sorted(self.reasons)[:5])
        raise DataError(
            f"more than {self.max_unreadable:,} images cannot be read, too many to skip them: repair them, or take them out. "
            f"reptk check-data lists all. The first:\n  {first}"
        )

    def among(self, numbers: Tensor) -> dict[int, str]:
        """Return which of these images cannot be read, and why."""
        if not self.reasons:
            return {}
        return {number: self.reasons[number] for number in numbers.tolist() if number in self.reasons}


class ImageFiles(WritableImages):
    """Image files, decoded when they are fetched.

    The paths are held as the bytes of one tensor: millions of them as Python objects would need several times the memory,
    and would be copied into every forked process.

    Pillow's warnings about unusual files are ignored from then on, in the whole process: warning filters are global, and
    the decoding threads cannot have their own.

    Args:
        paths: the files, in order.
        size: side in pixels of the square that every image is decoded to.
        jpeg: the JPEG decoder; `auto` is simplejpeg if it is installed.
        options: what the pixels of unusual files become.
        on_error: "skip": an image that cannot be read is black, and `unreadable` says why; "stop": it raises a DataError.
        max_unreadable: how many images may be skipped; by default the larger of 1 % and 10, of few images a fifth.

    Raises:
        EnvironmentProblem: `jpeg` is simplejpeg, and it is not installed.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        size: int,
        jpeg: Jpeg = "auto",
        *,
        options: PixelOptions = DEFAULT_OPTIONS,
        on_error: OnError = "stop",
        max_unreadable: int | None = None,
    ) -> None:
        if max_unreadable is None:
            max_unreadable = tolerated_unreadable(len(paths))
        self.size = size
        self.options = options
        self._unreadable = UnreadableImages(on_error, max_unreadable)
        self.jpeg = decoder(jpeg)
        self.decoded_by = versions_of(self.jpeg)
        encoded = [os.fsencode(path) for path in paths]
        lengths = [len(path) for path in encoded]
        self._ends = torch.tensor([0, *lengths]).cumsum(0)
        self._path_bytes = torch.frombuffer(bytearray(b"".join(encoded) or b"\0"), dtype=torch.uint8)  # never empty
        warnings.filterwarnings("ignore", module=r"PIL\.")

    def __len__(self) -> int:
        return len(self._ends) - 1

    def path(self, number: int) -> Path:
        encoded = self._path_bytes[self._ends[number] : self._ends[number + 1]]
        return Path(os.fsdecode(encoded.numpy().tobytes()))

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
            decode_into(self.path(number), square, self.jpeg, options=self.options)
        except DataError as error:
            self._unreadable.add(number, error)


@dataclass(frozen=True)
class FileReader:
    """How the files of a data set become images.

    Args:
        size: side in pixels.
        jpeg: the JPEG decoder.
        cache_folder: the folder of the decoded images; None to decode whenever an image is fetched.
        options: what the pixels of unusual files become.
        on_error: whether images that cannot be read are skipped.
    """

    size: int
    jpeg: Jpeg
    cache_folder: Path | None = None
    options: PixelOptions = DEFAULT_OPTIONS
    on_error: OnError = "stop"

    def read(self, splits: Sequence[Sequence[Path]]) -> list[Images]:
        """Return the images of each split. The splits share one cache, in which every file is once.

        Raises:
            DataError: a file is gone, or cannot be decoded into the cache.
            EnvironmentProblem: the cache cannot be written, or simplejpeg is requested and not installed.
        """
        # Sorted, so that the fingerprint of the cache does not depend on how the files are split.
        distinct = sorted({path for paths in splits for path in paths})
        # Of all splits together: a small split must not be stopped by one file.
        max_unreadable = tolerated_unreadable(len(distinct))
        if self.cache_folder is None:
            return [self._files(paths, max_unreadable) for paths in splits]
        files = self._files(distinct, max_unreadable)
        decoding = decoding_record(files.decoded_by, self.size, self.options)
        keys = [self._key(path, decoding) for path in distinct]
        cache = DecodedCache(files, keys, self.cache_folder)
        number_of = {path: number for number, path in enumerate(distinct)}
        cached = []
        for paths in splits:
            numbers = torch.tensor([number_of[path] for path in paths], dtype=torch.long)
            cached.append(WritableSubset(cache, numbers))
        return cached

    def _key(self, path: Path, decoding: str) -> str:
        """Return the key of a file in the cache. A table may list files that do not exist, which are skipped like others."""
        if self.on_error == "skip" and not path.exists():
            return hashlib.blake2b(os.fsencode(path.absolute()), digest_size=16).hexdigest()
        return file_key(path, decoding)

    def _files(self, paths: Sequence[Path], max_unreadable: int) -> ImageFiles:
        return ImageFiles(
            paths,
            self.size,
            self.jpeg,
            options=self.options,
            on_error=self.on_error,
            max_unreadable=max_unreadable,
        )


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
        parent = default_folder()
    else:
        parent = Path(cache).expanduser()
    root = root.resolve()
    # Folders with the same name in different places have different caches.
    digest = hashlib.blake2b(os.fsencode(root), digest_size=4).hexdigest()
    return parent.absolute() / f"{name}-{root.name}-{size}px-{digest}"
