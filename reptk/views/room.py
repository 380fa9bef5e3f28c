"""Where intermediate results lie: in new memory, or in memory that is kept from one batch to the next.

On a CPU, fresh memory costs more than filling it: the system hands it out page by page, and takes it back.
"""

import threading
from collections.abc import Callable

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
