"""Files of decoded images on disk, and how they are written: resumable, and by one process at a time.

A folder for each data set holds three files, of which the manifest is written last:

- `pixels-F.u8`: all images, (n, size, size, 3) uint8
- `rows-F.bin`: a record of each image: its key and the CRC-32 of its pixels
- `manifest.json`: what is needed to recognize a complete cache

F is a fingerprint of all keys. While a cache is built, the first two names end in `.part`. A record is written after the
pixels that it belongs to are on disk, so the records say how far an interrupted build came. Images whose keys are in an
earlier cache of the folder are copied from it.
"""

import hashlib
import json
import os
import shutil
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from reptk.core import files
from reptk.core.console import Logger
from reptk.core.errors import EnvironmentProblem
from reptk.data.prefetch import prefetch
from reptk.data.protocol import WritableImages

FORMAT_VERSION = 1

BLOCK_IMAGES = 64
"""Images that are decoded between two writes to disk."""

RECORD = np.dtype([("key", "S32"), ("checksum", "<u4")])

UNREADABLE = b""
"""In place of the key of an image that could not be read, so that its black pixels are never taken for the image."""


class CacheFiles:
    """The files of one cache, and what they have to hold.

    Args:
        folder: where they are.
        keys: (n,) S32, one for each image.
        size: side of the images in pixels.
    """

    def __init__(self, folder: Path, keys: NDArray[np.bytes_], size: int) -> None:
        self.folder = folder
        self.keys = keys
        self.size = size
        self.image_bytes = size**2 * 3
        self.total_bytes = len(keys) * self.image_bytes
        content = keys.tobytes() + f"{FORMAT_VERSION} {size}".encode()
        self.fingerprint = hashlib.sha256(content).hexdigest()[:16]
        self.pixels = folder / f"pixels-{self.fingerprint}.u8"
        self.records = folder / f"rows-{self.fingerprint}.bin"
        self.manifest = folder / "manifest.json"

    def is_complete(self) -> bool:
        """Check the manifest, all records, and the length of the file of pixels."""
        try:
            manifest = json.loads(self.manifest.read_text())
            records = self.records.read_bytes()
        except (OSError, ValueError):
            return False
        return (
            isinstance(manifest, dict)
            and manifest.get("version") == FORMAT_VERSION
            and manifest.get("fingerprint") == self.fingerprint
            and manifest.get("rows_sha256") == hashlib.sha256(records).hexdigest()
            # The content is not checked here, since that would read all pixels; each image has a checksum.
            and _num_bytes(self.pixels) == self.total_bytes
        )

    def map_pixels(self, path: Path, num_images: int) -> NDArray[np.uint8]:
        """Map (num_images, size, size, 3) uint8 of a file into memory, read-only."""
        return np.memmap(path, np.uint8, "r", shape=(num_images, self.size, self.size, 3))


def build_cache(cache: CacheFiles, images: WritableImages, workers: int) -> None:
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
    _check_free_space(cache.folder, cache.total_bytes - _allocated_bytes(_part(cache.pixels)))
    cache.folder.mkdir(parents=True, exist_ok=True)
    with _exclusive_lock(cache.folder):
        if not cache.is_complete():  # another process may have built it while this one waited
            _write_images(cache, images, workers)
            _publish(cache, images.decoded_by)


def read_records(path: Path) -> NDArray:
    """Return the complete records of a file; a killed process may have left a part of one more."""
    try:
        content = path.read_bytes()
    except OSError:
        content = b""
    complete_bytes = len(content) // RECORD.itemsize * RECORD.itemsize
    return np.frombuffer(content[:complete_bytes], RECORD)


def _write_images(cache: CacheFiles, images: WritableImages, workers: int) -> None:
    num_images = len(cache.keys)
    num_done = _num_resumable(cache)
    earlier = _EarlierCaches(cache)
    num_to_decode = sum(key not in earlier.location_of for key in cache.keys[num_done:].tolist())
    if not sys.stderr.isatty():
        print(f"decoding {num_to_decode:,} of {num_images:,} images once, into {cache.folder}", file=sys.stderr)

    # Blocks of consecutive images, so that the records written so far are those of a prefix.
    blocks = []
    for first in range(num_done, num_images, BLOCK_IMAGES):
        blocks.append(torch.arange(first, min(first + BLOCK_IMAGES, num_images)))
    decoded = prefetch(_CopiedOrDecoded(images, cache.keys, earlier), blocks, workers=workers)
    mode = "r+b" if num_done else "wb"
    with _part(cache.records).open(mode) as record_file, _part(cache.pixels).open(mode) as pixel_file:
        record_file.truncate(num_done * RECORD.itemsize)
        record_file.seek(num_done * RECORD.itemsize)
        # The file has its final length from the start, so that an interrupted build can be mapped into memory.
        pixel_file.truncate(cache.total_bytes)
        pixel_file.seek(num_done * cache.image_bytes)
        for block, numbers in _with_progress(decoded, num_images, num_done):
            pixels = block.permute(0, 2, 3, 1).contiguous().numpy()
            # Pixels first: a record promises that its pixels are on disk.
            pixel_file.write(pixels)
            _flush_to_disk(pixel_file)
            records = np.empty(len(pixels), RECORD)
            records["key"] = cache.keys[numbers.numpy()]
            for number in images.unreadable(numbers):
                records["key"][number - int(numbers[0])] = UNREADABLE
            records["checksum"] = [zlib.crc32(image) for image in pixels]
            record_file.write(records.tobytes())
            _flush_to_disk(record_file)


def _num_resumable(cache: CacheFiles) -> int:
    """Return how many images an interrupted build of the same cache wrote before the first damaged one."""
    if _num_bytes(_part(cache.pixels)) != cache.total_bytes:
        return 0
    records = read_records(_part(cache.records))
    pixels = cache.map_pixels(_part(cache.pixels), len(cache.keys))
    for number, record in enumerate(records):
        is_expected = record["key"] in (cache.keys[number], UNREADABLE)
        if not is_expected or record["checksum"] != zlib.crc32(pixels[number]):
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
    _flush_folder_to_disk(cache.folder)
    for path in cache.folder.iterdir():
        if path.name.startswith(("pixels-", "rows-")) and path not in (cache.pixels, cache.records):
            path.unlink()


class _EarlierCaches:
    """Images of earlier caches in the same folder, complete or not, by key."""

    def __init__(self, cache: CacheFiles) -> None:
        self.location_of: dict[bytes, tuple[int, int]] = {}
        """Key -> (index of the earlier cache, number of the image in it)."""
        self._pixels: list[NDArray[np.uint8]] = []
        self._checksums: list[NDArray[np.uint32]] = []
        # Complete caches whose manifest is damaged are included, since every image is checked when it is copied.
        for records_path in sorted(cache.folder.glob("rows-*")):
            if records_path == _part(cache.records):
                continue
            pixels_path = records_path.with_name(records_path.name.replace("rows-", "pixels-").replace(".bin", ".u8"))
            num_images = _num_bytes(pixels_path) // cache.image_bytes
            if num_images == 0:
                continue
            records = read_records(records_path)
            for number, key in enumerate(records["key"][:num_images].tolist()):
                self.location_of[key] = (len(self._pixels), number)
            self._pixels.append(cache.map_pixels(pixels_path, num_images))
            self._checksums.append(records["checksum"])

    def copy(self, key: bytes, out: NDArray[np.uint8]) -> bool:
        """Copy the image with this key, and return whether there is one that is not damaged."""
        if key not in self.location_of:
            return False
        index, number = self.location_of[key]
        # Copied before it is checked, so that a file that changes meanwhile cannot slip through.
        np.copyto(out, self._pixels[index][number])
        return zlib.crc32(out) == self._checksums[index][number]


class _CopiedOrDecoded(WritableImages):
    """Images that are copied from earlier caches if their keys are there, and decoded otherwise."""

    def __init__(self, images: WritableImages, keys: NDArray[np.bytes_], earlier: _EarlierCaches) -> None:
        self.size = images.size
        self._images = images
        self._keys = keys
        self._earlier = earlier

    def __len__(self) -> int:
        return len(self._images)

    def fetch_into(self, numbers: Tensor, out: NDArray[np.uint8]) -> None:
        for row, number in enumerate(numbers):
            if not self._earlier.copy(bytes(self._keys[number]), out[row]):
                self._images.fetch_into(number[None], out[row : row + 1])


def _part(path: Path) -> Path:
    """Return the name of a file while it is written."""
    return path.with_name(f"{path.name}.part")


def _num_bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _allocated_bytes(path: Path) -> int:
    """Return the space that a file uses on disk, which is less than its length while parts of it are not written."""
    return path.stat().st_blocks * 512 if path.is_file() else 0


def _check_free_space(folder: Path, needed_bytes: int) -> None:
    candidates = (folder.absolute(), *folder.absolute().parents)
    nearest = next(candidate for candidate in candidates if candidate.exists())
    free_bytes = shutil.disk_usage(nearest).free
    if needed_bytes > free_bytes:
        raise EnvironmentProblem(
            f"the images take {needed_bytes / 1e9:.1f} GB in {folder}, where {free_bytes / 1e9:.1f} GB are free. Name a "
            "folder on another disk (data.cache=/path), choose a smaller data.size, or data.cache=false"
        )


@contextmanager
def _exclusive_lock(folder: Path) -> Iterator[None]:
    """Let one process at a time run the block; the others wait.

    Unlike a barrier of all ranks, waiting has no timeout. The system releases the lock of a process that ends.
    """
    try:
        import fcntl
    except ImportError as cause:
        raise OSError("this system has no flock") from cause
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _with_progress(
    blocks: Iterable[tuple[Tensor, Tensor]], num_images: int, num_done: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pass blocks of images through, and show on standard error how many have passed."""
    logger = Logger(console=Console(stderr=True))
    with logger.count("decoding once", num_images, done=num_done) as advance:
        for images, numbers in blocks:
            yield images, numbers
            advance(len(numbers))


def _flush_to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _flush_folder_to_disk(folder: Path) -> None:
    """Make renamed files survive a crash of the system."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
