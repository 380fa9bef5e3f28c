"""Which images of a source are in which of its shards: Parquet files, tar files."""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reptk.core.errors import DataError
from reptk.data.records.lance_table import LanceTable
from reptk.data.records.record_source import Records
from reptk.data.records.shard_patterns import is_pattern

GO_ON = "The parts that are done stay; the same command goes on"


@dataclass(frozen=True)
class ImageShard:
    """Consecutive images of a group, `start` to `stop`, which are in one file.

    The file is known by its name, relative to the folder that the user names, its size in bytes and its time of modification in
    nanoseconds. A file whose images are not consecutive counts as several, of which `run` is the number. `path` is where it is
    on this machine. `identity` is a hash of what else the images depend on; empty if that is nothing.
    """

    name: str
    run: int
    start: int
    stop: int
    bytes: int
    mtime_ns: int
    path: Path
    identity: str = ""

    def __len__(self) -> int:
        return self.stop - self.start

    def record(self) -> dict[str, Any]:
        """Return what the parts of embeddings of this shard say of it."""
        record = {
            "name": self.name,
            "run": self.run,
            "images": len(self),
            "bytes": self.bytes,
            "mtime_ns": self.mtime_ns,
        }
        if self.identity:
            record["identity"] = self.identity
        return record

    def check_unchanged(self) -> None:
        """Raise DataError if the file is gone, or is not the one that was listed."""
        try:
            stat = self.path.stat()
        except OSError as cause:
            raise DataError(f"{self.path} can no longer be read: {cause.strerror}. {GO_ON}") from cause
        if (stat.st_size, stat.st_mtime_ns) != (self.bytes, self.mtime_ns):
            raise DataError(f"{self.path} has changed since it was listed. {GO_ON}")


def find_shards(rows: Records, base: Path) -> list[ImageShard]:
    """Return the shards of images in order; none if the images are not in files.

    Args:
        rows: the images.
        base: the folder that names are relative to, or a file or a pattern.
    """
    if not len(rows):
        return []
    while is_pattern(base):
        base = base.parent
    # Rows of one block, which may be a part of a file, are in one file.
    blocks = np.searchsorted(rows.source.block_starts(), rows.numbers, side="right")
    starts = np.flatnonzero(np.diff(blocks, prepend=-1)).tolist()
    shards: list[ImageShard] = []
    runs: Counter[Path] = Counter()
    first_path, _ = rows.source.location(int(rows.numbers[0]))
    current, start = first_path, 0
    for next_start in [*starts[1:], len(rows)]:
        path = None
        if next_start < len(rows):
            path, _ = rows.source.location(int(rows.numbers[next_start]))
        if path == current:
            continue
        if not current.is_file():
            return []
        identity = ""
        if isinstance(rows.source, LanceTable):
            identity = rows.source.fragment_identity(int(rows.numbers[start]))
        shards.append(_shard(current, runs[current], start, next_start, base, identity))
        runs[current] += 1
        if path is not None:
            current, start = path, next_start
    return shards


def _shard(path: Path, run: int, start: int, stop: int, base: Path, identity: str) -> ImageShard:
    name = path.name
    if path != base and path.is_relative_to(base):
        name = os.fspath(path.relative_to(base))
    stat = path.stat()
    return ImageShard(name, run, start, stop, stat.st_size, stat.st_mtime_ns, path, identity)
