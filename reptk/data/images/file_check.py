"""Read every image file once: size and mode, whether it can be decoded and is blank, and which files hold the same bytes."""

import functools
import hashlib
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from reptk.core.errors import DataError
from reptk.core.file_retries import with_retries
from reptk.data.decoding.blank_images import is_blank, may_be_blank
from reptk.data.decoding.decode import decode_picture, read_image_file
from reptk.data.decoding.pixel_options import DEFAULT_OPTIONS, PixelOptions
from reptk.data.records.record_source import Record

DECODE_PX = 32
"""Small, since JPEG files are decoded faster at a fraction of their size, and damage is found at any."""

BATCH_FILES = 256


class CheckedFile(NamedTuple):
    """What is known of one file; `error` says why it cannot be read as an image, and is empty if it can."""

    digest: bytes
    size_px: tuple[int, int] = (0, 0)
    mode: str = ""
    is_blank: bool = False
    error: str = ""


@dataclass
class FileCheck:
    """What is known of many files.

    Args:
        sizes_px: width and height of each image that can be read.
        modes: how many images have each of Pillow's modes.
        unreadable: files that cannot be read as images, and why.
        blank: files whose pixels all have one color, see `reptk.data.decoding.blank_images`.
        duplicates: groups of other files that hold the same bytes, in the order of the files.
    """

    sizes_px: list[tuple[int, int]] = field(default_factory=list)
    modes: Counter[str] = field(default_factory=Counter)
    unreadable: list[tuple[Path | Record, str]] = field(default_factory=list)
    blank: list[Path | Record] = field(default_factory=list)
    duplicates: list[list[Path | Record]] = field(default_factory=list)


def check_files(
    paths: Sequence[Path | Record],
    *,
    workers: int,
    advance: Callable[[int], None],
    options: PixelOptions = DEFAULT_OPTIONS,
) -> FileCheck:
    """Read all files.

    Args:
        paths: the files, or rows of Parquet shards.
        workers: threads that read them.
        advance: called with the number of further files that are done.
        options: as for `decode`.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # about unusual files, which are read nevertheless
        return _collect(paths, _read_all(paths, workers, options), advance)


def _collect(paths: Sequence[Path | Record], files: Iterator[CheckedFile], advance: Callable[[int], None]) -> FileCheck:
    check = FileCheck()
    first_of: dict[bytes, int] = {}
    copies: dict[int, list[Path | Record]] = {}
    for number, (path, checked) in enumerate(zip(paths, files, strict=True)):
        if checked.error:
            check.unreadable.append((path, checked.error))
        else:
            check.sizes_px.append(checked.size_px)
            check.modes[checked.mode] += 1
        if checked.is_blank:
            check.blank.append(path)
        elif checked.digest:
            first = first_of.setdefault(checked.digest, number)
            if first != number:
                copies.setdefault(first, [paths[first]]).append(path)
        advance(1)
    check.duplicates = [copies[first] for first in sorted(copies)]
    return check


def _read_all(paths: Sequence[Path | Record], workers: int, options: PixelOptions) -> Iterator[CheckedFile]:
    """Yield what is known of each file, in order; a few batches are read ahead."""

    def read_batch(batch: Sequence[Path | Record]) -> list[CheckedFile]:
        return [_read(path, options) for path in batch]

    with ThreadPoolExecutor(max(1, workers)) as pool:
        pending: list[Future[list[CheckedFile]]] = []
        for start in range(0, len(paths), BATCH_FILES):
            pending.append(pool.submit(read_batch, paths[start : start + BATCH_FILES]))
            if len(pending) > 2 * workers:
                yield from pending.pop(0).result()
        for future in pending:
            yield from future.result()


def _read(path: Path | Record, options: PixelOptions) -> CheckedFile:
    try:
        if isinstance(path, Path):
            content = with_retries(functools.partial(read_image_file, path, options))
        else:
            content = path.read_bytes()
    except (OSError, DataError) as cause:
        return CheckedFile(b"", error=str(cause))
    digest = hashlib.blake2b(content, digest_size=16).digest()
    try:
        picture = decode_picture(content, DECODE_PX, "pillow", options=options, name=str(path))
        blank = may_be_blank(picture.pixels) and is_blank(content, options)
        return CheckedFile(digest, picture.file_size_px, picture.mode, blank)
    except DataError as error:
        return CheckedFile(digest, error=str(error))
