"""Sources of encoded images with random access: Parquet files, tar shards, tables of Lance, data sets on disk."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from reptk.core.errors import DataError


class RecordSource(Protocol):
    """Encoded images, numbered from 0. Several threads read at the same time."""

    paths: list[Path]
    """The files, in order."""

    def __len__(self) -> int: ...

    def contents(self, numbers: Sequence[int]) -> list[bytes | DataError]:
        """Return the encoded images with these numbers, in this order; an error in place of one that cannot be read.

        Raises:
            DataError, EnvironmentProblem: the file that holds images has changed since it was opened, or cannot be read. This
                is no fault of its images, which are not to be skipped for it.
        """
        ...

    def name(self, number: int) -> str:
        """Return how messages call an image."""
        ...

    def location(self, number: int) -> tuple[Path, str]:
        """Return the file that holds an image, and what identifies it within this file, such as `row 17`."""
        ...

    def image_id(self, number: int) -> str:
        """Return a name of an image that is the same wherever the files are."""
        ...

    def find(self, image_id: str) -> int | None:
        """Return the number of the image with this id; None if there is none."""
        ...

    def block_starts(self) -> NDArray[np.int64]:
        """Return the numbers at which files, or other parts that are read as a whole, begin; ascending, from 0."""
        ...


class Record(NamedTuple):
    """One image of a source, which can be read and printed as if it were the path of an image file."""

    number: int
    source: RecordSource

    def read_bytes(self) -> bytes:
        """Return the encoded image.

        Raises:
            DataError, EnvironmentProblem: there is none, or it cannot be read.
        """
        [content] = self.source.contents([self.number])
        if isinstance(content, DataError):
            raise content
        return content

    def __str__(self) -> str:
        return self.source.name(self.number)


class Records(Sequence[Record]):
    """Images of one source, as a sequence that holds their numbers alone.

    Args:
        source: of the images.
        numbers: (n,) of the images, in order.
    """

    def __init__(self, source: RecordSource, numbers: NDArray[np.int64]) -> None:
        self.source = source
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> "Records": ...
    def __getitem__(self, index: int | slice) -> "Record | Records":
        if isinstance(index, slice):
            return Records(self.source, self.numbers[index])
        return Record(int(self.numbers[index]), self.source)

    def __iter__(self) -> Iterator[Record]:
        for number in range(len(self)):
            yield self[number]
