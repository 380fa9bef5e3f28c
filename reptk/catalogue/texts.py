"""Many strings in two arrays: their letters one after another, and where each ends. A file name keeps its bytes."""

from array import array
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray


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
        self.letters, self.ends = letters, ends

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
            return [self[one] for one in range(*number.indices(len(self)))]
        place = range(len(self))[number]
        return bytes(self.letters[self.ends[place] : self.ends[place + 1]]).decode("utf-8", "surrogateescape")

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


def is_utf8(text: str) -> bool:
    """Whether other programs can read it: no bytes of a file name that is not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
