"""Batches brought to the device that trains, and how long it had to wait for them."""

import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor


class DevicePrefetcher:
    """Tuples of tensors, on the device.

    On CUDA each is copied on a stream of its own, from page-locked memory while the step before is still computed; the
    step waits for the copy on the device, and nothing waits on the host. Elsewhere they are handed through.

    Args:
        batches: tuples of tensors, page-locked for CUDA.
        device: where they are used, on the stream that is current when they are asked for.
    """

    def __init__(self, batches: Iterable[tuple[Tensor, ...]], device: torch.device | str) -> None:
        self.device = torch.device(device)
        self._batches = iter(batches)
        self._waited = 0.0
        self._gaps: list[tuple[Any, Any]] = []
        self._copies = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return self

    def __next__(self) -> tuple[Tensor, ...]:
        if self._copies is None:
            since = time.perf_counter()
            batch = next(self._batches)
            self._waited += time.perf_counter() - since
            return tuple(part.to(self.device) for part in batch)
        current = torch.cuda.current_stream(self.device)
        idle, busy = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        idle.record(current)  # reached when the step before is done
        batch = next(self._batches)
        with torch.cuda.stream(self._copies):
            there = tuple(part.to(self.device, non_blocking=True) for part in batch)
        current.wait_stream(self._copies)
        for part in there:
            part.record_stream(current)
        busy.record(current)
        self._gaps.append((idle, busy))
        return there

    def waited(self) -> float:
        """Seconds that the device spent waiting for batches since this was asked last; on CUDA it must be idle by now.

        Time in which the host waits while the GPU still computes does not count.
        """
        seconds = self._waited + sum(idle.elapsed_time(busy) for idle, busy in self._gaps) / 1e3
        self._waited = 0.0
        self._gaps.clear()
        return seconds
