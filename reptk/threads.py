"""Work shared by as many threads as torch has, each of which runs torch's operations alone.

torch's own threads share every single operation, and wait for the next one in a loop, which keeps a core busy. Results do
not depend on the number of threads.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch


class _Pool:
    """As many threads as torch uses, each of which runs torch's operations alone; made when first used."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.threads: ThreadPoolExecutor | None = None
        self.size, self.process = 0, 0

    def get(self) -> ThreadPoolExecutor:
        size, process = torch.get_num_threads(), os.getpid()
        with self.lock:
            if self.threads is None or (self.size, self.process) != (size, process):
                if self.threads is not None and self.process == process:
                    self.threads.shutdown()
                ready = threading.Barrier(size + 1)
                self.threads = ThreadPoolExecutor(size, "reptk")
                for _ in range(size):
                    self.threads.submit(_alone, ready)
                ready.wait()
                torch.set_num_threads(size)  # what the threads set for themselves is also the default of later ones
                self.size, self.process = size, process
            return self.threads


_POOL = _Pool()


def _alone(ready: threading.Barrier) -> None:
    torch.set_num_threads(1)
    ready.wait()


def in_threads(work: Callable[[int], None], numbers: range) -> None:
    """work(number) for each of the numbers, shared among as many threads as torch has."""
    threads = torch.get_num_threads()
    if threads == 1:
        for number in numbers:
            work(number)
        return

    def share(first: int) -> None:
        with torch.no_grad():  # a thread has its own idea of it
            for number in numbers[first::threads]:
                work(number)

    pool = _POOL.get()
    for done in [pool.submit(share, first) for first in range(threads)]:
        done.result()


def in_parts(work: Callable[[int, int], None], count: int) -> None:
    """work(first, last) for parts of `count` things, one for each of as many threads as torch has."""
    share = max(1, -(-count // torch.get_num_threads()))
    in_threads(lambda number: work(number * share, min((number + 1) * share, count)), range(-(-count // share)))
