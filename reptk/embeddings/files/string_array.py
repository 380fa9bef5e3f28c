"""Many strings in two arrays: their bytes one after another, and the offset at which each of them ends.

This is the layout of a string column in Apache Arrow. It can be memory-mapped, so that ten million ids cost nothing until
they are read.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import overload

import numpy as np
from numpy.typing import NDArray

STRINGS_PER_CHUNK = 10_000
"""Strings that are decoded or compared at once when all of them are gone through."""


class StringArray(Sequence[str]):
    """A sequence of strings over two arrays, which may be memory-mapped.

    The bytes are UTF-8. A file name that is not valid UTF-8 keeps its bytes (Python's `surrogateescape`).

    Args:
        data: (bytes,) uint8, all strings one after another.
        offsets: (n + 1,) int64, where the strings begin and end; the first is 0.

    Raises:
        ValueError: the offsets do not match the data.
    """

    def __init__(self, data: NDArray[np.uint8], offsets: NDArray[np.int64]) -> None:
        if not len(offsets) or offsets[0] != 0 or offsets[-1] != len(data) or (np.diff(offsets) < 0).any():
            raise ValueError("strings and their offsets do not match")
        # np.asarray turns a memmap into a plain array over the same memory: indexing np.memmap itself is slow.
        self.data = np.asarray(data)
        self.offsets = np.asarray(offsets)

    @classmethod
    def from_strings(cls, strings: Iterable[str]) -> "StringArray":
        """Copy strings into arrays. A StringArray is returned as it is."""
        if isinstance(strings, StringArray):
            return strings
        builder = StringArrayBuilder()
        builder.extend(strings)
        return builder.build()

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return self._slice(*index.indices(len(self)))
        index = range(len(self))[index]  # resolves negative numbers, raises IndexError
        encoded = self.data[self.offsets[index] : self.offsets[index + 1]]
        return bytes(encoded).decode("utf-8", "surrogateescape")

    def _slice(self, start: int, stop: int, step: int) -> list[str]:
        if step != 1:
            return [self[index] for index in range(start, stop, step)]
        offsets = self.offsets[start : max(start, stop) + 1]
        encoded = bytes(self.data[offsets[0] : offsets[-1]])
        bounds = (offsets - offsets[0]).tolist()
        return [encoded[low:high].decode("utf-8", "surrogateescape") for low, high in pairwise(bounds)]

    def __iter__(self) -> Iterator[str]:
        # In chunks: a slice of the array for every single string would be slow.
        for start in range(0, len(self), STRINGS_PER_CHUNK):
            yield from self[start : start + STRINGS_PER_CHUNK]

    def find(self, text: str) -> int:
        """Return the index of the first string that equals `text`, -1 if there is none."""
        encoded = np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8)
        # Lengths are compared first: that rules out most strings without reading their bytes.
        candidates = np.flatnonzero(np.diff(self.offsets) == len(encoded))
        for start in range(0, len(candidates), STRINGS_PER_CHUNK):
            chunk = candidates[start : start + STRINGS_PER_CHUNK]
            byte_positions = self.offsets[chunk][:, None] + np.arange(len(encoded))
            is_equal = (self.data[byte_positions] == encoded).all(axis=1)
            if is_equal.any():
                return int(chunk[is_equal.argmax()])
        return -1


class JoinedStrings(Sequence[str]):
    """Several arrays of strings, one after another, without a copy.

    Args:
        parts: the arrays.
    """

    def __init__(self, parts: Sequence[StringArray]) -> None:
        self.parts = list(parts)
        self._starts = np.cumsum([0, *map(len, parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return self._slice(*index.indices(len(self)))
        index = range(len(self))[index]  # resolves negative numbers, raises IndexError
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.parts[part][index - int(self._starts[part])]

    def _slice(self, start: int, stop: int, step: int) -> list[str]:
        if step != 1:
            return [self[index] for index in range(start, stop, step)]
        strings = []
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        for part, part_start in zip(self.parts[first:], self._starts[first:].tolist(), strict=False):
            if part_start >= stop:
                break
            strings += part[max(0, start - part_start) : stop - part_start]
        return strings

    def __iter__(self) -> Iterator[str]:
        for part in self.parts:
            yield from part

    def find(self, text: str) -> int:
        """Return the index of the first string that equals `text`, -1 if there is none."""
        for part, part_start in zip(self.parts, self._starts.tolist(), strict=False):
            index = part.find(text)
            if index >= 0:
                return part_start + index
        return -1


def find_string(strings: Sequence[str], text: str) -> int:
    """Return the index of the first string that equals `text`, -1 if there is none."""
    if isinstance(strings, JoinedStrings):
        return strings.find(text)
    return StringArray.from_strings(strings).find(text)


class StringArrayBuilder:
    """Collects strings for a StringArray."""

    def __init__(self) -> None:
        # Both grow in place; a list of Python strings would take several times the memory.
        self._data = bytearray()
        self._offsets = array("q", [0])

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def extend(self, strings: Iterable[str]) -> None:
        """Append strings."""
        for string in strings:
            self._data += string.encode("utf-8", "surrogateescape")
            self._offsets.append(len(self._data))

    def build(self) -> StringArray:
        """Return the strings appended so far."""
        return StringArray(np.frombuffer(bytes(self._data), np.uint8), np.array(self._offsets, np.int64))


def are_utf8(strings: Sequence[str]) -> bool:
    """Return whether all strings are valid UTF-8, so that other programs can read them."""
    if isinstance(strings, JoinedStrings):
        return all(map(are_utf8, strings.parts))
    # Most ids and paths are ASCII, which is checked without decoding them.
    if isinstance(strings, StringArray) and bool((strings.data < 128).all()):
        return True
    return all(map(is_utf8, strings))


def is_utf8(string: str) -> bool:
    """Return whether a string holds no bytes of a file name that is not valid UTF-8."""
    try:
        string.encode()
    except UnicodeEncodeError:
        return False
    return True
