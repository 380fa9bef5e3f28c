"""Compiled loops (`numba_jit`) on as many threads as torch uses, whose results do not depend on the number of threads."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

import torch


def num_cpus() -> int:
    """Return the number of processor cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # systems other than Linux
        return os.cpu_count() or 1


def parallel_for(body: Callable[[int, int], None], count: int) -> None:
    """Call `body(first, last)` for contiguous ranges that cover `range(count)`, one range for each of torch's threads.

    The calling thread runs the first range itself. An exception of any range is raised once all have ended. `body` must not
    call `parallel_for`: it would wait for threads of the pool that it occupies itself.
    """
    if count == 0:
        return
    size = max(1, -(-count // torch.get_num_threads()))  # rounded up
    ranges = [(first, min(first + size, count)) for first in range(0, count, size)]
    if len(ranges) == 1:
        body(*ranges[0])
        return
    executor = _EXECUTORS.get(len(ranges) - 1)
    futures = [executor.submit(body, *bounds) for bounds in ranges[1:]]
    try:
        body(*ranges[0])
    finally:
        # Also if the first range raises: the others still write to the caller's arrays.
        wait(futures)
    for future in futures:
        future.result()


class _ExecutorCache:
    """A thread pool for this process, created at first use and replaced by a larger one when more threads are needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None
        self._size = 0
        self._process = 0

    def get(self, size: int) -> ThreadPoolExecutor:
        """An executor with at least `size` threads."""
        with self._lock:
            # After a fork the threads of the parent do not exist in the child.
            if self._executor is None or self._size < size or self._process != os.getpid():
                # A replaced executor's threads end when its last user lets go of it.
                self._executor = ThreadPoolExecutor(size, "reptk")
                self._size = size
                self._process = os.getpid()
            return self._executor


_EXECUTORS = _ExecutorCache()
