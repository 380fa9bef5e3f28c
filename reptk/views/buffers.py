"""Reusable memory for views on a CPU, where new memory costs as much as the work that is done in it.

The system hands new memory out page by page, and takes it back when it is freed.
"""

import sys
import threading
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Scratch = Callable[[str, tuple[int, ...], Tensor], Tensor | None]
"""scratch(name, shape, like) -> a tensor to write an intermediate result to, or None to let torch allocate it."""


def no_scratch(name: str, shape: tuple[int, ...], like: Tensor) -> Tensor | None:
    """The `Scratch` that always lets torch allocate."""
    return None


class ScratchBuffers:
    """The `Scratch` with one buffer for each name and dtype, which grows to the largest shape requested.

    A request for a name overwrites what was written there before.
    """

    def __init__(self) -> None:
        self.buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def __call__(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        length = torch.Size(shape).numel()
        # By dtype as well: views in float32 and float64 may be computed in turn.
        key = (name, like.dtype)
        # Never shrinks: the last chunk of a batch is smaller than the others.
        if key not in self.buffers or len(self.buffers[key]) < length:
            self.buffers[key] = torch.empty(length, dtype=like.dtype)
        return self.buffers[key][:length].view(shape)


class _ThreadScratch(threading.local):
    def __init__(self) -> None:
        self.buffers: list[ScratchBuffers] = []


_THREAD_SCRATCH = _ThreadScratch()


def thread_scratch(count: int) -> list[ScratchBuffers]:
    """Return `count` scratch buffers of this thread, the same in every call.

    One for each pass over the pixels, so that no pass overwrites what it reads.
    """
    buffers = _THREAD_SCRATCH.buffers
    while len(buffers) < count:
        buffers.append(ScratchBuffers())
    return buffers[:count]


class BufferPool:
    """Memory for results, reused once no tensor refers to it any more.

    A tensor made from a numpy array holds a reference to the array for as long as its storage exists, so the references to
    the array say whether the result, or any view of it, is still in use.

    Args:
        capacity: number of results for which memory is held, at most.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.arrays: list[np.ndarray] = []

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """`torch.empty` on the CPU."""
        # numpy has no bfloat16, for one.
        numpy_dtype = _NUMPY_DTYPES.get(dtype)
        if numpy_dtype is None:
            return torch.empty(shape, dtype=dtype)
        length = torch.Size(shape).numel()
        # Loading threads may draw views at the same time, and a count is only valid while nobody takes the array.
        with _POOL_LOCK:
            array = self._pop_unused(length, numpy_dtype)
            if array is None:
                array = np.empty(length, numpy_dtype)
            # The oldest array is dropped from the pool; it is freed once no tensor refers to it.
            self.arrays = [*self.arrays, array][-self.capacity :]
            return torch.from_numpy(array).view(shape)

    def _pop_unused(self, length: int, dtype: np.dtype) -> np.ndarray | None:
        """Remove and return the latest array of this size that nothing else refers to."""
        for position in reversed(range(len(self.arrays))):
            has_size = self.arrays[position].size == length and self.arrays[position].dtype == dtype
            if has_size and _reference_count(self.arrays, position) == _UNUSED_COUNT:
                return self.arrays.pop(position)
        return None


_NUMPY_DTYPES = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}
_POOL_LOCK = threading.Lock()


def _reference_count(arrays: list[np.ndarray], position: int) -> int:
    return sys.getrefcount(arrays[position])


# References to an array that only its list holds, which depend on the version of Python.
_UNUSED_COUNT = _reference_count([np.empty(1)], 0)
