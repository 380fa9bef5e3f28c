"""How the splits of a data set are opened: image files that are decoded whenever they are fetched, or once into a cache."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge
from numpy.typing import NDArray

from reptk.core import mapped_arrays, user_folders
from reptk.core.files import expand_home, real_path
from reptk.data.bad_samples import tolerated_unreadable
from reptk.data.decoding.decode import DECODE_VERSION, Jpeg
from reptk.data.decoding.pixel_options import DEFAULT_OPTIONS, PixelOptions
from reptk.data.decoding.resize import DEFAULT_PREPROCESSING, Preprocessing, SquareOptions
from reptk.data.images.cache import DecodedCache, file_key, record_key
from reptk.data.images.image_files import ImageFiles, OnError
from reptk.data.protocol import Images, WritableSubset
from reptk.data.records.record_source import Record, Records

ImageSize = Annotated[int, Ge(8)]
"""Pixels of the shorter side to which every image is decoded."""


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
        return [WritableSubset(cache, torch.from_numpy(_positions(paths, distinct))) for paths in splits]

    def _key(self, path: Path | Record, decoding: str) -> str:
        """Return the key of a file or a record in the cache.

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
    is_used = mapped_arrays.zeros(len(first.source), np.bool_)
    for records in splits:
        for part in mapped_arrays.chunks(len(records)):
            is_used[records.numbers[part]] = True
    return Records(first.source, mapped_arrays.flatnonzero(is_used))


def _positions(paths: Sequence[Path] | Records, distinct: Sequence[Path] | Records) -> NDArray[np.int64]:
    """Return the position (n,) of each image of a split among the distinct images."""
    if isinstance(paths, Records):
        return mapped_arrays.apply(partial(np.searchsorted, distinct.numbers), paths.numbers, np.int64)
    position_of = {path: position for position, path in enumerate(distinct)}
    return np.array([position_of[path] for path in paths], np.int64)


def decoded_cache_folder(cache: bool | str, name: str, root: Path, size: int) -> Path | None:
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
    # Folders with the same name and different parents have different caches.
    digest = hashlib.blake2b(os.fsencode(root), digest_size=4).hexdigest()
    return parent.absolute() / f"{name}-{root.name}-{size}px-{digest}"
