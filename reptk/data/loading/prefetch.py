"""Batches fetched by threads before they are needed; all threads work on the same batch."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from math import ceil

import torch
from einops import rearrange
from torch import Tensor

from reptk.data.protocol import Images, InMemory, WritableImages

PREFETCHED_BATCHES = 2
"""Batches in preparation while one is in use. Since all threads share a batch, more would only need more memory."""

CHUNKS_PER_WORKER = 4
"""Chunks of a batch for each thread: few calls, and still no long wait for the thread that finishes last."""

Submit = Callable[..., Future]
"""Starts a call, as `ThreadPoolExecutor.submit` does."""


def prefetch(
    images: Images, batches: Iterable[Tensor], *, workers: int = 0, device: torch.device | str = "cpu"
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (images (b, 3, H, W) uint8, numbers (b,)) for each batch of numbers, in their order.

    The images are in channels-last memory, and in page-locked memory if `device` is a CUDA device. `InMemory` images are
    moved to the device and indexed there, without threads. An exception that an image raises is raised when its batch is
    due. The threads end with the iterator, also if it is abandoned.

    Args:
        images: where the batches are fetched from, by all threads at the same time.
        batches: (b,) integers each.
        workers: number of threads; with 0 the calling thread fetches each batch when it is due.
        device: where the batches will be used.
    """
    pin_memory = torch.device(device).type == "cuda"
    if isinstance(images, InMemory):
        # Indexing on the device is faster than any copy of batches to it.
        images.to(device)
        for numbers in batches:
            yield images.fetch(numbers), numbers
    elif workers == 0:
        for numbers in batches:
            yield _PendingBatch(images, numbers, _call_now, max(1, len(numbers)), pin_memory).result()
    else:
        yield from _prefetch_with_threads(images, batches, workers, pin_memory)


def _prefetch_with_threads(
    images: Images, batches: Iterable[Tensor], workers: int, pin_memory: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    pool = ThreadPoolExecutor(workers, thread_name_prefix="reptk-prefetch")
    queue: deque[_PendingBatch] = deque()
    try:
        for numbers in batches:
            # At least 1: tensors cannot be split into chunks of 0.
            chunk_size = max(1, ceil(len(numbers) / (workers * CHUNKS_PER_WORKER)))
            queue.append(_PendingBatch(images, numbers, pool.submit, chunk_size, pin_memory))
            if len(queue) > PREFETCHED_BATCHES:
                # No reference stays here while the caller uses the batch: its memory is free once the caller drops it.
                yield queue.popleft().result()
        while queue:
            yield queue.popleft().result()
    finally:
        # Also reached if the iterator is abandoned: closing a generator raises GeneratorExit at its yield.
        pool.shutdown(cancel_futures=True)


def _call_now(function: Callable[..., object], *args: object) -> Future:
    """Call a function in this thread, with the interface of `ThreadPoolExecutor.submit`."""
    future: Future = Future()
    future.set_result(function(*args))
    return future


class _PendingBatch:
    """A batch whose chunks are being fetched: in place if the images are writable, else concatenated at the end."""

    def __init__(self, images: Images, numbers: Tensor, submit: Submit, chunk_size: int, pin_memory: bool) -> None:
        self._numbers = numbers
        self._pin_memory = pin_memory
        self._buffer: Tensor | None = None
        self._futures: list[Future] = []
        chunks = numbers.split(chunk_size)
        if isinstance(images, WritableImages):
            shape = (len(numbers), images.size, images.size, 3)
            self._buffer = torch.empty(shape, dtype=torch.uint8, pin_memory=pin_memory)
            for chunk, out in zip(chunks, self._buffer.split(chunk_size), strict=True):
                self._futures.append(submit(images.fetch_into, chunk, out.numpy()))
        else:
            for chunk in chunks:
                self._futures.append(submit(images.fetch, chunk))

    def result(self) -> tuple[Tensor, Tensor]:
        """Wait for all chunks and return the images (b, 3, H, W) and their numbers (b,)."""
        # Raises what the fetching of a chunk raised.
        chunks = [future.result() for future in self._futures]
        if self._buffer is not None:
            return rearrange(self._buffer, "b h w c -> b c h w"), self._numbers
        if len(chunks) > 1:
            batch = torch.cat(chunks)
        else:
            batch = chunks[0]
        # The same memory format for every number of chunks and every kind of images.
        batch = batch.contiguous(memory_format=torch.channels_last)
        if self._pin_memory and not batch.is_cuda:
            batch = batch.pin_memory()
        return batch, self._numbers
