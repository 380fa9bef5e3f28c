"""Many strings in two arrays: their letters one after another, and where each ends. A file name keeps its bytes."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import overload

import numpy as np
from numpy.typing import NDArray

PART = 10_000
"""Strings that are decoded at once when all are gone through."""


class Texts(Sequence[str]):
    """Strings that may lie in a mapped file: ten million of them cost what is read of them.

    Letters are UTF-8; bytes of a file name that is none are kept as they are (Python's surrogateescape).

    Args:
        letters: uint8, all strings one after another.
        ends: (n + 1,) int64, where they begin and end, 0 first.

    Raises:
        ValueError: the ends do not fit the letters.
    """

    def __init__(self, letters: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        if not len(ends) or ends[0] != 0 or ends[-1] != len(letters) or (np.diff(ends) < 0).any():
            raise ValueError("strings and their ends do not fit")
        self.letters, self.ends = (
            np.asarray(letters),
            np.asarray(ends),
        )  # of a mapped file the same, without its slow class

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Texts":
        """Keep strings. Those kept already are handed through."""
        if isinstance(texts, Texts):
            return texts
        growing = Growing()
        growing.extend(texts)
        return growing.kept()

    def __len__(self) -> int:
        return len(self.ends) - 1

    @overload
    def __getitem__(self, number: int) -> str: ...
    @overload
    def __getitem__(self, number: slice) -> list[str]: ...
    def __getitem__(self, number: int | slice) -> str | list[str]:
        if isinstance(number, slice):
            return self._part(*number.indices(len(self)))
        place = range(len(self))[number]
        return bytes(self.letters[self.ends[place] : self.ends[place + 1]]).decode("utf-8", "surrogateescape")

    def _part(self, first: int, last: int, step: int) -> list[str]:
        if step != 1:
            return [self[one] for one in range(first, last, step)]
        ends = self.ends[first : max(first, last) + 1]
        letters, ends = bytes(self.letters[ends[0] : ends[-1]]), (ends - ends[0]).tolist()
        return [letters[low:high].decode("utf-8", "surrogateescape") for low, high in pairwise(ends)]

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), PART):
            yield from self[first : first + PART]

    def find(self, text: str) -> int:
        """The number of the first string that is `text`, -1 if none is."""
        wanted = np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8)
        for place in np.flatnonzero(np.diff(self.ends) == len(wanted)):
            if np.array_equal(self.letters[self.ends[place] : self.ends[place + 1]], wanted):
                return int(place)
        return -1


class Growing:
    """Strings that come one by one."""

    def __init__(self) -> None:
        self._letters, self._ends = bytearray(), array("q", [0])

    def extend(self, texts: Iterable[str]) -> None:
        for text in texts:
            self._letters += text.encode("utf-8", "surrogateescape")
            self._ends.append(len(self._letters))

    def kept(self) -> Texts:
        """All so far."""
        return Texts(np.frombuffer(bytes(self._letters), np.uint8), np.array(self._ends, np.int64))


def are_utf8(texts: Sequence[str]) -> bool:
    """Whether other programs can read them all."""
    if isinstance(texts, Texts) and bool((texts.letters < 128).all()):
        return True
    return all(map(is_utf8, texts))


def is_utf8(text: str) -> bool:
    """Whether other programs can read it: no bytes of a file name that is not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
