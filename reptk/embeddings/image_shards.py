"""Which images of a source are in which of its shards: Parquet files, tar files."""

import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from reptk.data.record_source import Rows
from reptk.data.shard_patterns import is_pattern


class ImageShard(NamedTuple):
    """Consecutive images of a group, `start` to `stop`, which are in one file.

    The file is known by its name, relative to the folder that the user names, its size in bytes and its time of modification in
    nanoseconds. A file whose images are not consecutive counts as several, of which `run` is the number.
    """

    name: str
    run: int
    start: int
    stop: int
    bytes: int
    mtime_ns: int

    def record(self) -> dict[str, str | int]:
        """Return what the part of embeddings of this shard says of it."""
        return {
            "name": self.name,
            "run": self.run,
            "images": self.stop - self.start,
            "bytes": self.bytes,
            "mtime_ns": self.mtime_ns,
        }


def find_shards(rows: Rows, base: Path) -> list[ImageShard]:
    """Return the shards of images in order; none if the images are not in files, as those of a table of Lance.

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
    first_path, _ = rows.source.place(int(rows.numbers[0]))
    current, start = first_path, 0
    for next_start in [*starts[1:], len(rows)]:
        path = None
        if next_start < len(rows):
            path, _ = rows.source.place(int(rows.numbers[next_start]))
        if path == current:
            continue
        if not current.is_file():
            return []
        shards.append(_shard(current, runs[current], start, next_start, base))
        runs[current] += 1
        if path is not None:
            current, start = path, next_start
    return shards


def _shard(path: Path, run: int, start: int, stop: int, base: Path) -> ImageShard:
    name = path.name
    if path != base and path.is_relative_to(base):
        name = os.fspath(path.relative_to(base))
    stat = path.stat()
    return ImageShard(name, run, start, stop, stat.st_size, stat.st_mtime_ns)
