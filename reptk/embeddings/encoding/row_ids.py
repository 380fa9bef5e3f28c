"""The ids of images in shards, each of which is computed when it is read."""

from collections.abc import Iterator, Sequence
from typing import overload

from reptk.data.records.record_source import Records


class RowIds(Sequence[str]):
    """The ids of rows, without a copy: of a hundred million images, they would take gigabytes on every rank, and minutes.

    Args:
        rows: the images.
    """

    def __init__(self, rows: Records) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return list(self._of(self._rows.numbers[index].tolist()))
        return self._rows.source.image_id(int(self._rows.numbers[index]))

    def __iter__(self) -> Iterator[str]:
        return self._of(self._rows.numbers.tolist())

    def _of(self, numbers: list[int]) -> Iterator[str]:
        for number in numbers:
            yield self._rows.source.image_id(number)
