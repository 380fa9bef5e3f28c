"""Decoded images on disk, mapped into memory: built once, checked, shared by every process that trains on them.

A folder a data set: `pixels-F.u8` (n, size, size, 3), `rows-F.bin` (a record an image: key and checksum) and `manifest.json`,
published last; F is the fingerprint of all keys. While it is built the first two end in `.part`, and the records say how
far it has come: what is recorded was on disk before. An image's key is made of its path, size and time of change and of
who decodes it how, so whatever else changes, rows with a known key are copied from before and only the others decoded.
"""

import hashlib
import json
import os
import shutil
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from reptk.core.errors import DataError, EnvironmentProblem
from reptk.data.prefetch import num_cpus, prefetch
from reptk.data.protocol import WritableImages, fetch_batch

VERSION = 1
BLOCK = 64
"""Images between two records on disk while a cache is built."""

RECORD = np.dtype([("key", "S32"), ("checksum", "<u4")])


class Cache:
    """All images of a data set, decoded once.

    The file's length, fingerprint and records are checked when it is opened, each image against its checksum when it is
    first fetched.

    Args:
        images: where they come from, in order.
        keys: 32 letters an image; another key means another picture.
        place: the folder to keep them in.
        maker: who decoded them, for whoever reads the manifest.
        workers: threads that decode while it is built; as many as there are num_cpus by default.

    Raises:
        EnvironmentProblem: no room, no right to write, or a file system without locks.
        DataError: an image cannot be read; what was decoded before is kept.
    """

    def __init__(
        self, images: WritableImages, keys: Sequence[str], place: Path, *, maker: str, workers: int | None = None
    ) -> None:
        self.size, self.place, self.decoded_by = images.size, place, maker
        self.keys = np.array(keys, dtype="S32")
        self.fingerprint = hashlib.sha256(self.keys.tobytes() + f"{VERSION} {images.size}".encode()).hexdigest()[:16]
        if not self._is_complete():
            try:
                _need_room(place, self._bytes() - _on_disk(self._part(self._pixels)))
                place.mkdir(parents=True, exist_ok=True)
                with _locked(place):
                    if not self._is_complete():  # another process may have built it meanwhile
                        self._build(images, num_cpus() if workers is None else workers)
                        self._publish()
            except OSError as cause:
                raise EnvironmentProblem(
                    f"cannot keep the images in {place}: {cause}. Name another folder (data.cache=/path), or data.cache=false"
                ) from cause
        self._records = np.fromfile(self._rows, RECORD)
        self._map = np.memmap(self._pixels, np.uint8, "r", shape=(len(self.keys), self.size, self.size, 3))
        self._checked = np.zeros(len(self.keys), dtype=bool)

    def __len__(self) -> int:
        return len(self.keys)

    def fetch_into(self, numbers: Tensor, rows: NDArray[np.uint8]) -> None:
        for number, row in zip(numbers.tolist(), rows, strict=True):
            np.copyto(row, self._map[number])
            if not self._checked[number]:
                if zlib.crc32(row) != self._records["checksum"][number]:
                    raise DataError(
                        f"{self._pixels} is damaged (image {number}). Delete {self.place}; it is built anew"
                    )
                self._checked[number] = True

    def fetch(self, numbers: Tensor) -> Tensor:
        return fetch_batch(self, numbers)

    @property
    def _pixels(self) -> Path:
        return self.place / f"pixels-{self.fingerprint}.u8"

    @property
    def _rows(self) -> Path:
        return self.place / f"rows-{self.fingerprint}.bin"

    @staticmethod
    def _part(path: Path) -> Path:
        return path.with_name(f"{path.name}.part")

    def _bytes(self) -> int:
        return len(self.keys) * self.size**2 * 3

    def _is_complete(self) -> bool:
        try:
            manifest = json.loads((self.place / "manifest.json").read_text())
            rows = self._rows.read_bytes()
        except (OSError, ValueError):
            return False
        return (
            isinstance(manifest, dict)
            and (manifest.get("version"), manifest.get("fingerprint")) == (VERSION, self.fingerprint)
            and manifest.get("rows_sha256") == hashlib.sha256(rows).hexdigest()
            and _length(self._pixels) == self._bytes()
        )

    def _build(self, images: WritableImages, workers: int) -> None:
        done = self._recorded()
        known = _Known(self.place, self.size, besides=self._part(self._rows))
        decoding = sum(key not in known.found for key in self.keys[done:].tolist())
        if not sys.stderr.isatty():
            print(f"decoding {decoding:,} of {len(self):,} images once, into {self.place}", file=sys.stderr)
        mode = "r+b" if done else "wb"
        with self._part(self._rows).open(mode) as records, self._part(self._pixels).open(mode) as pixels:
            records.truncate(done * RECORD.itemsize)
            records.seek(done * RECORD.itemsize)
            pixels.truncate(self._bytes())
            pixels.seek(done * self.size**2 * 3)
            blocks = [torch.arange(start, min(start + BLOCK, len(self))) for start in range(done, len(self), BLOCK)]
            wanted = _Wanted(images, self.keys, known)
            for made, numbers in _shown(prefetch(wanted, blocks, workers=workers), len(self), done):
                rows = made.permute(0, 2, 3, 1).contiguous().numpy()
                pixels.write(rows)
                _sync(pixels)
                made_records = [(self.keys[number], zlib.crc32(row)) for number, row in zip(numbers, rows, strict=True)]
                records.write(np.array(made_records, RECORD).tobytes())
                _sync(records)

    def _recorded(self) -> int:
        """How many images an interrupted build of the same pictures got down, as far as they are whole."""
        if _length(self._part(self._pixels)) != self._bytes():
            return 0
        records = _read_records(self._part(self._rows))
        rows = np.memmap(self._part(self._pixels), np.uint8, "r", shape=(len(self), self.size, self.size, 3))
        for number, record in enumerate(records):
            if record["key"] != self.keys[number] or zlib.crc32(rows[number]) != record["checksum"]:
                return number
        return len(records)

    def _publish(self) -> None:
        content = {
            "version": VERSION,
            "images": len(self),
            "size_px": self.size,
            "decoded_by": self.decoded_by,
            "fingerprint": self.fingerprint,
            "rows_sha256": hashlib.sha256(self._part(self._rows).read_bytes()).hexdigest(),
        }
        for path in (self._pixels, self._rows):
            self._part(path).replace(path)
        temporary = self.place / "manifest.json.part"
        with temporary.open("w", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=2) + "\n")
            _sync(file)
        temporary.replace(self.place / "manifest.json")
        _sync_folder(self.place)
        for path in self.place.iterdir():
            if path.name.startswith(("pixels-", "rows-")) and path not in (self._pixels, self._rows):
                path.unlink()


class Part:
    """Some of a cache's images, numbered from 0."""

    def __init__(self, cache: Cache, numbers: Tensor) -> None:
        self.cache, self.numbers, self.size, self.decoded_by = cache, numbers, cache.size, cache.decoded_by

    def __len__(self) -> int:
        return len(self.numbers)

    def fetch_into(self, numbers: Tensor, rows: NDArray[np.uint8]) -> None:
        self.cache.fetch_into(self.numbers[numbers], rows)

    def fetch(self, numbers: Tensor) -> Tensor:
        return fetch_batch(self, numbers)


class _Known:
    """Rows of earlier caches of the place, finished or not, by key."""

    def __init__(self, place: Path, size: int, *, besides: Path) -> None:
        self.sources: list[tuple[NDArray[np.uint8], NDArray]] = []
        self.found: dict[bytes, tuple[int, int]] = {}
        for path in sorted(set(place.glob("rows-*")) - {besides}):
            records = _read_records(path)
            pixels = path.with_name(path.name.replace("rows-", "pixels-").replace(".bin", ".u8"))
            count = _length(pixels) // (size**2 * 3)
            if count:
                keys = records["key"][:count].tolist()
                self.found |= {key: (len(self.sources), number) for number, key in enumerate(keys)}
                rows = np.memmap(pixels, np.uint8, "r", shape=(count, size, size, 3))
                self.sources.append((rows, records["checksum"]))

    def copy(self, key: bytes, row: NDArray[np.uint8]) -> bool:
        """Copy the row of this key, if there is one and it is whole."""
        if key not in self.found:
            return False
        source, number = self.found[key]
        rows, checksums = self.sources[source]
        np.copyto(row, rows[number])
        return zlib.crc32(row) == checksums[number]


class _Wanted:
    """Images of which known ones are copied and the others decoded."""

    def __init__(self, images: WritableImages, keys: NDArray, known: _Known) -> None:
        self.images, self.keys, self.known, self.size = images, keys, known, images.size

    def fetch_into(self, numbers: Tensor, rows: NDArray[np.uint8]) -> None:
        for number, row in zip(numbers, rows, strict=True):
            if not self.known.copy(bytes(self.keys[number]), row):
                self.images.fetch_into(number[None], row[None])

    def fetch(self, numbers: Tensor) -> Tensor:
        return fetch_batch(self, numbers)


def default_place() -> Path:
    """`$XDG_CACHE_HOME/reptk`, or `~/.cache/reptk`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "reptk"


def key_of(path: Path, how: str) -> str:
    """32 letters for an image file as it is now, decoded so.

    Raises:
        DataError: the file is gone.
    """
    try:
        stat = path.stat()
    except OSError as cause:
        raise DataError(f"cannot read {path}: {cause}") from cause
    text = os.fsencode(path.absolute()) + f"\0{stat.st_size} {stat.st_mtime_ns} {how}".encode()
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def _read_records(path: Path) -> NDArray:
    """Whole records of a file; what a killed process left of one more is passed over."""
    try:
        content = path.read_bytes()
    except OSError:
        content = b""
    return np.frombuffer(content[: len(content) // RECORD.itemsize * RECORD.itemsize], RECORD)


def _length(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _on_disk(path: Path) -> int:
    """Bytes taken, which are fewer than the length while holes are left."""
    return path.stat().st_blocks * 512 if path.is_file() else 0


def _need_room(place: Path, needed: int) -> None:
    there = next(folder for folder in (place.absolute(), *place.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise EnvironmentProblem(
            f"the images take {needed / 1e9:.1f} GB in {place}, where {free / 1e9:.1f} GB are free. Name a folder on another "
            "disk (data.cache=/path), choose a smaller data.size, or data.cache=false"
        )


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    """One process at a time; the others wait, without a collective that could time out. Ends with its process."""
    try:
        import fcntl
    except ImportError as cause:
        raise OSError("this system has no flock") from cause
    with (place / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _shown(blocks: Iterable[tuple[Tensor, Tensor]], total: int, done: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The same, with a bar on a terminal (standard error)."""
    columns = (TextColumn("decoding once"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:
        task = shown.add_task("", total=total, completed=done)
        for images, numbers in blocks:
            yield images, numbers
            shown.advance(task, len(numbers))


def _sync(file: BinaryIO | TextIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(place: Path) -> None:
    folder = os.open(place, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
