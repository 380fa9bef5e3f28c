"""Machine code (`machine_code`) run by as many threads as torch has. Results do not depend on their number."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

import torch


def parallel_for(work: Callable[[int, int], None], count: int) -> None:
    """work(first, last) for parts of `count` things, one for each of torch's threads; one part is done right here."""
    share = max(1, -(-count // torch.get_num_threads()))
    parts = [(first, min(first + share, count)) for first in range(0, count, share)]
    if not parts:
        return
    others = [_POOL.get(len(parts) - 1).submit(work, *part) for part in parts[1:]]
    try:
        work(*parts[0])
    finally:
        wait(others)
    for done in others:
        done.result()


class _Pool:
    """Threads, made when first used, in each process anew."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.threads: ThreadPoolExecutor | None = None
        self.size, self.process = 0, 0

    def get(self, size: int) -> ThreadPoolExecutor:
        """At least `size` of them."""
        with self.lock:
            if self.threads is None or self.size < size or self.process != os.getpid():
                # Threads of the one that is replaced end when nobody uses it any more.
                self.threads, self.size, self.process = ThreadPoolExecutor(size, "reptk"), size, os.getpid()
            return self.threads


_POOL = _Pool()
