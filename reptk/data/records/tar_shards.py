"""Images in tar shards, read at the offsets in the index: one system call each, from any number of threads."""

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reptk.core.errors import DataError, EnvironmentProblem
from reptk.core.file_retries import with_retries
from reptk.core.printable_names import in_one_line
from reptk.data.records.shard_names import file_id
from reptk.data.records.tar_index import TarIndex, describe_difference

MAX_OPEN_SHARDS = 256
"""A process may open 1,024 files, as most systems are set."""


class TarShards:
    """The images of tar shards, numbered in the order of the shards; a `RecordSource`.

    Args:
        index: of the shards.
        base: the folder that ids name shards from; None for that of each shard.
    """

    def __init__(self, index: TarIndex, base: Path | None = None) -> None:
        self.index = index
        self.paths = index.paths
        self._file_ids = [file_id(path, base) for path in self.paths]
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.index)

    def contents(self, numbers: Sequence[int]) -> list[bytes | DataError]:
        """Return the encoded images with these numbers.

        A shard that cannot be read is no fault of its images: nothing is returned in their place, since they would be left out
        although they are whole.

        Raises:
            DataError: a shard has changed since it was indexed.
            EnvironmentProblem: a shard cannot be read, not even after some seconds.
        """
        return [self._content(number) for number in numbers]

    def name(self, number: int) -> str:
        """Return how messages call an image."""
        return f"{self.paths[self._shard_of(number)]}, {in_one_line(self.index.key(number))}"

    def location(self, number: int) -> tuple[Path, str]:
        """Return the shard of an image, and the offset of its first byte in it."""
        return self.paths[self._shard_of(number)], f"byte {int(self.index.records['offset'][number])}"

    def image_id(self, number: int) -> str:
        """Return the id of an image: the name of its shard and the key of its sample, as in train-000003/000017."""
        return f"{self._file_ids[self._shard_of(number)]}/{self.index.key(number)}"

    def find(self, image_id: str) -> int | None:
        """Return the number of the image with this id; None if there is none."""
        for shard, shard_id in enumerate(self._file_ids):
            if not image_id.startswith(f"{shard_id}/"):
                continue
            key = image_id[len(shard_id) + 1 :]
            for number in range(int(self.index.shard_starts[shard]), int(self.index.shard_starts[shard + 1])):
                if self.index.key(number) == key:
                    return number
        return None

    def block_starts(self) -> NDArray[np.int64]:
        """Return the number of the first image of each shard."""
        return self.index.shard_starts[:-1]

    def _content(self, number: int) -> bytes:
        try:
            return with_retries(lambda: self._read(number))
        except OSError as cause:
            raise EnvironmentProblem(
                f"cannot read {self.name(number)}: {cause.strerror or cause}. Is the disk of the shard available? "
                "Start again once it is"
            ) from cause

    def _shard_of(self, number: int) -> int:
        return int(self.index.records["shard"][number])

    def _read(self, number: int) -> bytes:
        record = self.index.records[number]
        shard = self._open_shard(int(record["shard"]))
        size = int(record["size"])
        content = os.pread(shard.descriptor, size, int(record["offset"]))
        while len(content) < size:
            # One call reads at most 2 GB, and a network disk may return less.
            rest = os.pread(shard.descriptor, size - len(content), int(record["offset"]) + len(content))
            if not rest:
                raise DataError(f"cannot read {self.name(number)}: the shard has been truncated since it was indexed")
            content += rest
        # What is read from a shard that is being written over is no image, or another one.
        self._check_unchanged(int(record["shard"]), shard)
        return content

    def _open_shard(self, number: int) -> "_OpenShard":
        with self._lock:
            shard = self._open.get(number)
            if shard is not None:
                self._open.move_to_end(number)
                return shard
        # Opened without the lock, since on a network disk this takes a while. Two threads may do it at once.
        shard = _OpenShard(self.paths[number])
        self._check_unchanged(number, shard)
        with self._lock:
            self._open[number] = shard
            while len(self._open) > MAX_OPEN_SHARDS:
                self._open.popitem(last=False)
        return shard

    def _check_unchanged(self, number: int, shard: "_OpenShard") -> None:
        """Raise DataError if an open shard is not what was indexed."""
        change = describe_difference(os.fstat(shard.descriptor), self.index.stats[number])
        if change is not None:
            raise DataError(f"{self.paths[number]} has changed since it was indexed: it {change}; start again")


class _OpenShard:
    """An open file, which is closed when no thread uses it any more."""

    def __init__(self, path: Path) -> None:
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
