"""Images fetched ahead of their use, by threads that all work on the same batch."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from math import ceil

import torch
from einops import rearrange
from torch import Tensor

from reptk.data.protocol import Images, InMemory, WritableImages

AHEAD = 2
"""Batches under way while one is in use. All threads share a batch, so more would only take memory."""

PARTS = 4
"""Parts of a batch per thread: few calls, and nobody waits long for the last one."""


def prefetch(
    images: Images, batches: Iterable[Tensor], *, workers: int = 0, device: torch.device | str = "cpu"
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of numbers -> (images (b, 3, H, W) uint8, the numbers), in their order.

    In memory by pixel (channels last), as decoders give them; page-locked when they are bound for CUDA. Images held in
    memory move to the device and are picked there, without threads. Whatever an image raises is raised when its batch
    is due. The threads end with the iterator, also when it is abandoned.

    Args:
        images: fetched from by all threads at once.
        batches: (b,) integers each.
        workers: threads; 0 fetches in this one when asked.
        device: where the batches will be used.
    """
    pin = torch.device(device).type == "cuda"
    if isinstance(images, InMemory):
        images.to(device)
        yield from ((images.fetch(numbers), numbers) for numbers in batches)
        return
    if workers == 0:
        yield from ((_Batch(images, numbers, pin, _at_once).wait(), numbers) for numbers in batches)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="reptk-ahead")
    under_way: deque[_Batch] = deque()
    try:
        for numbers in batches:
            under_way.append(_Batch(images, numbers, pin, pool.submit, ceil(len(numbers) / (workers * PARTS))))
            if len(under_way) > AHEAD:
                yield under_way[0].wait(), under_way.popleft().numbers
        while under_way:
            yield under_way[0].wait(), under_way.popleft().numbers
    finally:
        pool.shutdown(cancel_futures=True)


def num_cpus() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _at_once(call: Callable[..., object], *arguments: object) -> Future:
    done: Future = Future()
    done.set_result(call(*arguments))
    return done


class _Batch:
    """A batch whose parts are being fetched: written in place where the images can, else put together at the end."""

    def __init__(
        self, images: Images, numbers: Tensor, pin: bool, submit: Callable[..., Future], part: int | None = None
    ) -> None:
        self.numbers, self.pin = numbers, pin
        self.rows: Tensor | None = None
        pieces = numbers.split(part or max(1, len(numbers)))
        if isinstance(images, WritableImages):
            self.rows = torch.empty(len(numbers), images.size, images.size, 3, dtype=torch.uint8, pin_memory=pin)
            places = self.rows.split(part or max(1, len(numbers)))
            pairs = zip(pieces, places, strict=True)
            self.parts = [submit(images.fetch_into, piece, place.numpy()) for piece, place in pairs]
        else:
            self.parts = [submit(images.fetch, piece) for piece in pieces]

    def wait(self) -> Tensor:
        made = [part.result() for part in self.parts]
        if self.rows is not None:
            return rearrange(self.rows, "b h w c -> b c h w")
        whole = (torch.cat(made) if len(made) > 1 else made[0]).contiguous(memory_format=torch.channels_last)
        return whole.pin_memory() if self.pin and not whole.is_cuda else whole
