"""What images can be read from by number, other than files of their own: Parquet files, tar shards, tables of Lance."""

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

    def place(self, number: int) -> tuple[Path, str]:
        """Return the file that holds an image, and what tells it from the others in this file."""
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


class ShardRow(NamedTuple):
    """One image of a source, which can be read and printed as if it were the path of an image file."""

    number: int
    shards: RecordSource

    def read_bytes(self) -> bytes:
        """Return the encoded image.

        Raises:
            DataError, EnvironmentProblem: there is none, or it cannot be read.
        """
        [content] = self.shards.contents([self.number])
        if isinstance(content, DataError):
            raise content
        return content

    def __str__(self) -> str:
        return self.shards.name(self.number)


class Rows(Sequence[ShardRow]):
    """Images of one source, as a sequence that holds their numbers alone.

    Args:
        source: where they are.
        numbers: (n,) of the images, in order.
    """

    def __init__(self, source: RecordSource, numbers: NDArray[np.int64]) -> None:
        self.source = source
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> ShardRow: ...
    @overload
    def __getitem__(self, index: slice) -> "Rows": ...
    def __getitem__(self, index: int | slice) -> "ShardRow | Rows":
        if isinstance(index, slice):
            return Rows(self.source, self.numbers[index])
        return ShardRow(int(self.numbers[index]), self.source)

    def __iter__(self) -> Iterator[ShardRow]:
        for number in range(len(self)):
            yield self[number]
