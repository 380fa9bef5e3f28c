"""Files of decoded images on disk, and how they are written: resumable, and by one process at a time.

A folder for each data set holds three files, of which the manifest is written last:

- `pixels-F.u8`: all images, (height, width, 3) uint8 each, one after the other
- `rows-F.bin`: a record of each image: its key, height, width and the CRC-32 of its pixels
- `manifest.json`: what is needed to recognize a complete cache

F is a fingerprint of all keys. While a cache is built, the first two names end in `.part`. A record is written after the
pixels that it belongs to are on disk, so the records say how far an interrupted build came. Images whose keys are in an
earlier cache of the folder are copied from it.
"""

import hashlib
import json
import os
import sys
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from reptk.core import files
from reptk.core.console import Logger
from reptk.core.counts import format_count
from reptk.core.disk_space import check_free_space
from reptk.core.file_locks import exclusive_lock
from reptk.core.foreign_files import read_json
from reptk.data.decoding.resize import Pixels, SquareOptions
from reptk.data.protocol import WritableImages

FORMAT_VERSION = 2

BLOCK_IMAGES = 64
"""Images that are decoded between two writes to disk."""

BLOCKS_AHEAD = 2
"""Blocks that are decoded while one is written."""

PART_SUFFIX = ".part"
"""Ends the names of files while they are written."""

ABANDONED_SECONDS = 24 * 3600
"""A build that has written nothing for so long, while another cache of the folder is used, is not resumed any more."""

SPACE_ADVICE = "Name a folder on another disk (data.cache=/path), choose a smaller data.size, or data.cache=false"

RECORD = np.dtype([("key", "S32"), ("checksum", "<u4"), ("height", "<u2"), ("width", "<u2")])

UNREADABLE = b""
"""In place of the key of an image that could not be read, so that its black pixels are never used as those of the image."""


class PictureFiles(WritableImages, Protocol):
    """Images that a cache decodes: `picture` returns one with its proportions."""

    square: SquareOptions

    def picture(self, number: int) -> Pixels:
        """Return an image (height, width, 3) uint8, black if it cannot be read. Several threads call this at once."""
        ...


class CacheFiles:
    """The files of one cache, and what they have to hold.

    Args:
        folder: where they are.
        keys: (n,) S32, one for each image.
        size: shorter side of the images in pixels.
    """

    def __init__(self, folder: Path, keys: NDArray[np.bytes_], size: int) -> None:
        self.folder = folder
        self.keys = keys
        self.size = size
        self.min_bytes = len(keys) * size**2 * 3
        content = keys.tobytes() + f"{FORMAT_VERSION} {size}".encode()
        self.fingerprint = hashlib.sha256(content).hexdigest()[:16]
        self.pixels = folder / f"pixels-{self.fingerprint}.u8"
        self.records = folder / f"rows-{self.fingerprint}.bin"
        self.manifest = folder / "manifest.json"

    def is_complete(self) -> bool:
        """Check the manifest, all records, and the length of the file of pixels."""
        try:
            manifest = read_json(self.manifest)
            records = self.records.read_bytes()
        except (OSError, ValueError):
            return False
        return (
            isinstance(manifest, dict)
            and manifest.get("version") == FORMAT_VERSION
            and manifest.get("fingerprint") == self.fingerprint
            and manifest.get("rows_sha256") == hashlib.sha256(records).hexdigest()
            # The content is not checked here, since that would read all pixels; each image has a checksum.
            and _num_bytes(self.pixels) == offsets_of(np.frombuffer(records, RECORD))[-1]
        )


def build_cache(cache: CacheFiles, images: PictureFiles, workers: int) -> None:
    """Write a cache, or finish one whose build was interrupted. Returns at once if another process completed it.

    Args:
        cache: the files to write.
        images: what they will hold, in order.
        workers: number of decoding threads.

    Raises:
        EnvironmentProblem: there is not enough free space.
        OSError: the folder cannot be written, or its file system has no locks.
        DataError: an image cannot be read, and `images` does not skip it. What was decoded before it is used by the next
            build.
    """
    check_free_space(cache.folder, cache.min_bytes - _num_bytes(_part(cache.pixels)), SPACE_ADVICE)
    cache.folder.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(cache.folder):
        if not cache.is_complete():  # another process may have built it while this one waited
            _write_images(cache, images, workers)
            _publish(cache, images.decoded_by)


def remove_old_builds(cache: CacheFiles) -> None:
    """Remove what killed builds of other caches left next to a complete one, unless a process builds there now.

    Files that a build could still be resumed with stay for a day.
    """
    with suppress(OSError), exclusive_lock(cache.folder, wait=False):
        files.remove_leftovers(cache.manifest)
        for path in _others(cache):
            age_seconds = time.time() - path.stat().st_mtime
            if not path.name.endswith(PART_SUFFIX) or age_seconds > ABANDONED_SECONDS:
                path.unlink()


def read_records(path: Path) -> NDArray:
    """Return the complete records of a file; a killed process may have left a part of one more."""
    try:
        content = path.read_bytes()
    except OSError:
        content = b""
    complete_bytes = len(content) // RECORD.itemsize * RECORD.itemsize
    return np.frombuffer(content[:complete_bytes], RECORD).copy()


def offsets_of(records: NDArray) -> NDArray[np.int64]:
    """Return where in the file of pixels each image begins, and where the last one ends: (n + 1,) in bytes."""
    num_bytes = records["height"].astype(np.int64) * records["width"] * 3
    return np.concatenate([np.zeros(1, np.int64), num_bytes.cumsum()])


def _write_images(cache: CacheFiles, images: PictureFiles, workers: int) -> None:
    num_images = len(cache.keys)
    num_done = _num_resumable(cache)
    earlier = _EarlierCaches(cache)
    num_to_decode = sum(key not in earlier.location_of for key in cache.keys[num_done:].tolist())
    if not sys.stderr.isatty():
        print(
            f"decoding {num_to_decode:,} of {format_count(num_images, 'image')} once, into {cache.folder}",
            file=sys.stderr,
        )

    # Blocks of consecutive images, so that the records written so far are those of a prefix.
    blocks = []
    for first in range(num_done, num_images, BLOCK_IMAGES):
        blocks.append(range(first, min(first + BLOCK_IMAGES, num_images)))

    def read(number: int) -> Pixels:
        picture = earlier.copy(bytes(cache.keys[number]))
        if picture is None:
            picture = images.picture(number)
        return picture

    mode = "wb"
    if num_done:
        mode = "r+b"
    done_bytes = int(offsets_of(read_records(_part(cache.records))[:num_done])[-1])
    with _part(cache.records).open(mode) as record_file, _part(cache.pixels).open(mode) as pixel_file:
        record_file.truncate(num_done * RECORD.itemsize)
        record_file.seek(num_done * RECORD.itemsize)
        pixel_file.truncate(done_bytes)
        pixel_file.seek(done_bytes)
        for block, pictures in _with_progress(_read_ahead(read, blocks, workers), num_images, num_done):
            # Pixels first: a record promises that its pixels are on disk.
            for picture in pictures:
                pixel_file.write(np.ascontiguousarray(picture))
            _flush_to_disk(pixel_file)
            record_file.write(_records_of(cache, images, block, pictures).tobytes())
            _flush_to_disk(record_file)


def _records_of(cache: CacheFiles, images: PictureFiles, block: range, pictures: Sequence[Pixels]) -> NDArray:
    records = np.empty(len(block), RECORD)
    records["key"] = cache.keys[block.start : block.stop]
    for number in images.unreadable(torch.arange(block.start, block.stop)):
        records["key"][number - block.start] = UNREADABLE
    for record, picture in zip(records, pictures, strict=True):
        record["checksum"] = zlib.crc32(np.ascontiguousarray(picture))
        record["height"], record["width"] = picture.shape[:2]
    return records


def _read_ahead(
    read: Callable[[int], Pixels], blocks: Sequence[range], workers: int
) -> Iterator[tuple[range, list[Pixels]]]:
    """Yield each block with its images, read by `workers` threads while the blocks before are written."""
    with ThreadPoolExecutor(max(1, workers)) as pool:
        try:
            pending: deque[tuple[range, list[Future[Pixels]]]] = deque()
            for block in blocks:
                pending.append((block, [pool.submit(read, number) for number in block]))
                if len(pending) > BLOCKS_AHEAD:
                    yield _result_of(*pending.popleft())
            while pending:
                yield _result_of(*pending.popleft())
        finally:
            # Also reached if the iterator is abandoned, e.g. since the disk is full.
            pool.shutdown(cancel_futures=True)


def _result_of(block: range, futures: Sequence[Future[Pixels]]) -> tuple[range, list[Pixels]]:
    return block, [future.result() for future in futures]


def _num_resumable(cache: CacheFiles) -> int:
    """Return how many images an interrupted build of the same cache wrote before the first damaged one."""
    records = read_records(_part(cache.records))[: len(cache.keys)]
    if not len(records) or not _num_bytes(_part(cache.pixels)):
        return 0
    pixels = np.memmap(_part(cache.pixels), np.uint8, "r")
    offsets = offsets_of(records)
    for number, record in enumerate(records):
        is_expected = record["key"] in (cache.keys[number], UNREADABLE)
        # Of a file that was cut off, the rest has another checksum.
        if not is_expected or record["checksum"] != zlib.crc32(pixels[offsets[number] : offsets[number + 1]]):
            return number
    return len(records)


def _publish(cache: CacheFiles, decoded_by: str | None) -> None:
    """Give the files their final names, write the manifest, and remove the files of earlier caches."""
    manifest = {
        "version": FORMAT_VERSION,
        "images": len(cache.keys),
        "size_px": cache.size,
        "decoded_by": decoded_by,
        "fingerprint": cache.fingerprint,
        "rows_sha256": files.sha256_of(_part(cache.records)),
    }
    # The manifest comes last: without it, the cache is not complete.
    for path in (cache.pixels, cache.records):
        _part(path).replace(path)
    files.write_text(cache.manifest, json.dumps(manifest, indent=2) + "\n")
    files.flush_to_disk(cache.folder)
    for path in _others(cache):
        path.unlink()


def _others(cache: CacheFiles) -> list[Path]:
    """Return the files of other caches in the folder, complete or not."""
    others = []
    for path in sorted(cache.folder.iterdir()):
        if path.name.startswith(("pixels-", "rows-")) and path not in (cache.pixels, cache.records):
            others.append(path)
    return others


class _EarlierCaches:
    """Images of earlier caches in the same folder, complete or not, by key."""

    def __init__(self, cache: CacheFiles) -> None:
        self.location_of: dict[bytes, tuple[int, int]] = {}
        """Key -> (index of the earlier cache, number of the image in it)."""
        self._pixels: list[NDArray[np.uint8]] = []
        self._records: list[NDArray] = []
        self._offsets: list[NDArray[np.int64]] = []
        # Complete caches whose manifest is damaged are included, since every image is checked when it is copied.
        for records_path in sorted(cache.folder.glob("rows-*")):
            if records_path == _part(cache.records):
                continue
            pixels_path = records_path.with_name(records_path.name.replace("rows-", "pixels-").replace(".bin", ".u8"))
            if not _num_bytes(pixels_path):
                continue
            records = read_records(records_path)
            for number, key in enumerate(records["key"].tolist()):
                self.location_of[key] = (len(self._pixels), number)
            self._pixels.append(np.memmap(pixels_path, np.uint8, "r"))
            self._records.append(records)
            self._offsets.append(offsets_of(records))

    def copy(self, key: bytes) -> Pixels | None:
        """Return the image with this key; None if there is none, or if it is damaged."""
        if key not in self.location_of:
            return None
        index, number = self.location_of[key]
        record, offsets = self._records[index][number], self._offsets[index]
        # Copied before it is checked, so that a file that changes meanwhile cannot slip through.
        picture = np.array(self._pixels[index][offsets[number] : offsets[number + 1]])
        if zlib.crc32(picture) != record["checksum"]:
            return None
        return picture.reshape(record["height"], record["width"], 3)


def _part(path: Path) -> Path:
    """Return the name of a file while it is written."""
    return path.with_name(path.name + PART_SUFFIX)


def _num_bytes(path: Path) -> int:
    if not path.is_file():
        return 0
    return path.stat().st_size


def _with_progress(
    blocks: Iterable[tuple[range, list[Pixels]]], num_images: int, num_done: int
) -> Iterator[tuple[range, list[Pixels]]]:
    """Pass blocks of images through, and show on standard error how many have passed."""
    logger = Logger(console=Console(stderr=True))
    with logger.count("decoding once", num_images, done=num_done) as advance:
        for block, pictures in blocks:
            yield block, pictures
            advance(len(block))


def _flush_to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
