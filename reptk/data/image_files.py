"""Images in files of their own: decoded whenever they are fetched, or once into a cache on disk."""

import hashlib
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge
from numpy.typing import NDArray
from torch import Tensor

from reptk.data.cache import DecodedCache, default_folder, file_key
from reptk.data.decode import DECODE_VERSION, Jpeg, decode_into, decoder, versions_of
from reptk.data.protocol import Images, WritableImages, WritableSubset

ImageSize = Annotated[int, Ge(8)]
"""Side in pixels of the square that every image is decoded to."""


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

    Raises:
        EnvironmentProblem: `jpeg` is simplejpeg, and it is not installed.
    """

    def __init__(self, paths: Sequence[Path], size: int, jpeg: Jpeg = "auto") -> None:
        self.size = size
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
            decode_into(self.path(number), square, self.jpeg)


@dataclass(frozen=True)
class FileReader:
    """How the files of a data set become images.

    Args:
        size: side in pixels.
        jpeg: the JPEG decoder.
        cache_folder: the folder of the decoded images; None to decode whenever an image is fetched.
    """

    size: int
    jpeg: Jpeg
    cache_folder: Path | None = None

    def read(self, splits: Sequence[Sequence[Path]]) -> list[Images]:
        """Return the images of each split. The splits share one cache, in which every file is once.

        Raises:
            DataError: a file is gone, or cannot be decoded into the cache.
            EnvironmentProblem: the cache cannot be written, or simplejpeg is requested and not installed.
        """
        if self.cache_folder is None:
            return [ImageFiles(paths, self.size, self.jpeg) for paths in splits]
        # Sorted, so that the fingerprint of the cache does not depend on how the files are split.
        distinct = sorted({path for paths in splits for path in paths})
        files = ImageFiles(distinct, self.size, self.jpeg)
        decoding = f"{files.decoded_by}, {self.size} px, decode {DECODE_VERSION}"
        keys = [file_key(path, decoding) for path in distinct]
        cache = DecodedCache(files, keys, self.cache_folder)
        number_of = {path: number for number, path in enumerate(distinct)}
        cached = []
        for paths in splits:
            numbers = torch.tensor([number_of[path] for path in paths], dtype=torch.long)
            cached.append(WritableSubset(cache, numbers))
        return cached


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
