"""Which images of a source are in which of its shards: Parquet files, tar files."""

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from reptk.data.parquet_shards import ShardRow


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


def find_shards(rows: Iterable[ShardRow], base: Path) -> list[ImageShard]:
    """Return the shards of images in order.

    Args:
        rows: the images.
        base: the folder that names are relative to, or a file.
    """
    shards: list[ImageShard] = []
    runs: Counter[Path] = Counter()
    current = None
    start = count = 0
    for row in rows:
        path, _ = row.shards.place(row.number)
        if path != current:
            if current is not None:
                shards.append(_shard(current, runs[current], start, count, base))
                runs[current] += 1
            current, start = path, count
        count += 1
    if current is not None:
        shards.append(_shard(current, runs[current], start, count, base))
    return shards


def _shard(path: Path, run: int, start: int, stop: int, base: Path) -> ImageShard:
    name = path.name
    if path != base and path.is_relative_to(base):
        name = os.fspath(path.relative_to(base))
    stat = path.stat()
    return ImageShard(name, run, start, stop, stat.st_size, stat.st_mtime_ns)
