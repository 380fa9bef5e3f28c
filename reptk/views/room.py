"""Where intermediate results lie: in new memory, or in memory that is kept from one batch to the next.

On a CPU, fresh memory costs as much as what is done in it: the system hands it out page by page, and takes it back.
"""

import sys
import threading
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Room = Callable[[str, tuple[int, ...], Tensor], Tensor | None]
"""room(name, shape, like) -> a tensor to write to, or None: let torch allocate."""


def new(name: str, shape: tuple[int, ...], like: Tensor) -> Tensor | None:
    """New memory for everything."""
    return None


class Kept:
    """One piece of memory a name, which grows to the largest shape asked for. What was written there is lost next time."""

    def __init__(self) -> None:
        self.pieces: dict[tuple[str, torch.dtype], Tensor] = {}

    def __call__(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        length, place = torch.Size(shape).numel(), (name, like.dtype)
        if place not in self.pieces or len(self.pieces[place]) < length:
            self.pieces[place] = torch.empty(length, dtype=like.dtype)
        return self.pieces[place][:length].view(shape)


_KEPT = threading.local()


def rooms(count: int) -> list[Kept]:
    """Memory that this thread keeps, a room for each stage, so that none writes over what it reads."""
    kept = _KEPT.__dict__.setdefault("rooms", [])
    kept += [Kept() for _ in range(count - len(kept))]
    return kept


class Lent:
    """Memory for results that leave, lent again once nobody holds the tensor or a view of it.

    A tensor made of a numpy array keeps a reference to it for as long as its storage lives, and those can be counted.

    Args:
        kept: for how many results to keep memory, at most.
    """

    def __init__(self, kept: int) -> None:
        self.kept = kept
        self.arrays: list[np.ndarray] = []

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """As `torch.empty` on the CPU."""
        length, kind = torch.Size(shape).numel(), _NUMPYS.get(dtype)
        if kind is None:
            return torch.empty(shape, dtype=dtype)
        with _LENDING:
            sizes = [(array.size, array.dtype) for array in self.arrays]
            alike = [number for number, size in enumerate(sizes) if size == (length, kind)]
            idle = [number for number in alike if _holders(self.arrays, number) == _NOBODY]
            array = self.arrays.pop(idle[-1]) if idle else np.empty(length, kind)
            self.arrays = [*self.arrays, array][-self.kept :]
            return torch.from_numpy(array).view(shape)


_NUMPYS = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}
_LENDING = threading.Lock()


def _holders(arrays: list[np.ndarray], number: int) -> int:
    return sys.getrefcount(arrays[number])


_NOBODY = _holders([np.empty(1)], 0)
"""References to an array that only the list holds, as this version of Python counts them."""
