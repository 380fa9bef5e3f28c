"""Which images `ImageFiles` has, in little memory: paths of files, or numbers of a source of records."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reptk.core import mapped_arrays
from reptk.core.errors import DataError
from reptk.data.protocol import block_starts_of_subset
from reptk.data.records.record_source import Record, Records


class PathList:
    """Paths of image files, as the bytes of one array.

    Millions of Python objects would need several times the memory, and would be copied into every forked process.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        lengths = np.fromiter((len(os.fsencode(path)) for path in paths), np.int64, len(paths))
        self._ends = mapped_arrays.from_chunks([np.zeros(1), lengths.cumsum()], len(paths) + 1, np.int64)
        pieces = (_encoded(paths[part]) for part in mapped_arrays.chunks(len(paths)))
        self._bytes = mapped_arrays.from_chunks(pieces, int(self._ends[-1]), np.uint8)

    def __getitem__(self, number: int) -> Path:
        encoded = self._bytes[self._ends[number] : self._ends[number + 1]]
        return Path(os.fsdecode(encoded.tobytes()))

    def contents(self, numbers: NDArray[np.int64]) -> Sequence[Path]:
        """Return the paths, which decoding opens."""
        return [self[number] for number in numbers.tolist()]

    def files(self) -> list[Path]:
        return [self[number] for number in range(len(self._ends) - 1)]

    def block_starts(self) -> None:
        return None


def _encoded(paths: Sequence[Path]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(os.fsencode(path) for path in paths), np.uint8)


class RecordList:
    """Images of one source, by their numbers; with the methods of `PathList`."""

    def __init__(self, records: Records) -> None:
        self._records = records

    def __getitem__(self, number: int) -> Record:
        return self._records[number]

    def contents(self, numbers: NDArray[np.int64]) -> Sequence[bytes | DataError]:
        return self._records.source.contents(self._records.numbers[numbers].tolist())

    def files(self) -> list[Path]:
        return self._records.source.paths

    def block_starts(self) -> NDArray[np.int64] | None:
        return block_starts_of_subset(self._records.source.block_starts(), self._records.numbers)
