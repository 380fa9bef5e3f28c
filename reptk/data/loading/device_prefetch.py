"""Copies batches to the training device during the step before, and measures how long the device waits for them."""

import time
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor


class DevicePrefetcher:
    """Iterator over batches on the device.

    On CUDA each batch is copied on a separate stream, from page-locked memory, while the step before is still being
    computed. The step waits for the copy on the device; the host never waits. On other devices a batch is copied when it
    is due, which returns the same tensors if they are there already.

    Args:
        batches: tuples of tensors, in page-locked memory for CUDA.
        device: where the batches are used, on the stream that is current when they are requested.
    """

    def __init__(self, batches: Iterable[tuple[Tensor, ...]], device: torch.device | str) -> None:
        self.device = torch.device(device)
        self._batches = iter(batches)
        self._copy_stream = None
        if self.device.type == "cuda":
            self._copy_stream = torch.cuda.Stream(self.device)
        self._host_wait_seconds = 0.0
        self._device_waits: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return self

    def __next__(self) -> tuple[Tensor, ...]:
        if self._copy_stream is None:
            start = time.perf_counter()
            batch = next(self._batches)
            self._host_wait_seconds += time.perf_counter() - start
            return tuple(tensor.to(self.device) for tensor in batch)

        compute_stream = torch.cuda.current_stream(self.device)
        wait_begin = torch.cuda.Event(enable_timing=True)
        wait_end = torch.cuda.Event(enable_timing=True)
        wait_begin.record(compute_stream)  # reached when the step before is computed
        batch = next(self._batches)
        with torch.cuda.stream(self._copy_stream):
            batch = tuple(tensor.to(self.device, non_blocking=True) for tensor in batch)
        compute_stream.wait_stream(self._copy_stream)
        for tensor in batch:
            # The copy stream allocated the memory; it may be reused only after the compute stream is done with it.
            tensor.record_stream(compute_stream)
        wait_end.record(compute_stream)
        self._device_waits.append((wait_begin, wait_end))
        return batch

    def waited(self) -> float:
        """Return the seconds for which the device waited for batches since the last call.

        On CUDA the device must be idle when this is called. Time in which the host waits while the GPU still computes
        does not count.
        """
        device_milliseconds = sum(begin.elapsed_time(end) for begin, end in self._device_waits)
        seconds = self._host_wait_seconds + device_milliseconds / 1e3
        self._host_wait_seconds = 0.0
        self._device_waits.clear()
        return seconds
