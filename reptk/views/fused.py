"""Runs of recognised operations as few passes over the pixels: draw for all images, then apply.

Neighbours are joined where that changes nothing: a crop or resize and the flips behind it are one pair of linear maps;
colour operations are one matrix an image. The order of the list is kept.

Applying has two forms that agree to rounding. Whole batches: products and no branch on what was drawn, so nothing waits
for a GPU, and `torch.compile` can have it. Image by image, on a CPU and for larger images: only what an image drew is
done, on data that stays in the cache, by as many threads as torch has.
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from reptk.views import colour, spatial
from reptk.views.plain import float_type, unit
from reptk.views.recognised import Blur, Crop, Flip, Gray, Jitter, Recognised, Resize, ResizedCrop

LARGE_PX = 64
"""On a CPU, images or views with more pixels than a square of this side are made one by one."""

CHUNK_VALUES = 1 << 19
"""On a CPU, smaller views are made in batches of about so many values, which stay in the cache."""

_CROPS = (ResizedCrop, Crop, Resize)


class Fused:
    """A run of recognised operations.

    Args:
        operations: in order.
        exact_hue: one colour operation after the other, each cut to 0..1, hue by HSV, as torchvision and kornia do.
    """

    def __init__(self, operations: Sequence[Recognised], exact_hue: bool = False) -> None:
        self.operations = list(operations)
        self.exact_hue = exact_hue
        self.stages = _stages(self.operations)

    def draw(self, key: int, rows: Tensor, shape: tuple[int, int]) -> list[Tensor]:
        """A table of numbers for each operation, a row for each of the images `rows`, of `shape` height and width."""
        draws = []
        for operation in self.operations:
            draws.append(operation.draw(key, rows, shape))
            shape = getattr(operation, "size", shape)
        return draws

    def __call__(self, images: Tensor, rows: Tensor, key: int, out: Tensor | None = None) -> Tensor:
        """(n, 3, H, W) uint8, or floats in 0..1 -> (n, 3, h, w) floats in 0..1; on a CPU in `out`, if given."""
        return self.apply(images, self.draw(key, rows, images.shape[-2:]), out)

    def apply(self, images: Tensor, draws: list[Tensor], out: Tensor | None = None) -> Tensor:
        """What `draws` make of images, in the way that is faster here."""
        if images.device.type != "cpu" or torch.compiler.is_compiling():
            return self.apply_to_batch(images, draws)
        size = self.out_shape(images.shape[-2:])
        made = torch.empty(len(images), 3, *size, dtype=float_type(images)) if out is None else out
        if max(images.shape[-2] * images.shape[-1], size[0] * size[1]) > LARGE_PX**2:
            tables = [draw.tolist() for draw in draws]
            mixes = self._mixes(draws, made.dtype)
            pixels = images.contiguous(memory_format=torch.channels_last) if images.dtype == torch.uint8 else images

            def one(number: int) -> None:
                made[number] = self._apply_to_one(pixels[number], [table[number] for table in tables], mixes, number)

            _in_threads(one, range(len(images)))
            return made
        step = max(1, CHUNK_VALUES // (3 * size[0] * size[1]))

        def chunk(first: int) -> None:
            part = slice(first, first + step)
            made[part] = self.apply_to_batch(images[part], [draw[part] for draw in draws])

        _in_threads(chunk, range(0, len(images), step))
        return made

    def apply_to_batch(self, images: Tensor, draws: list[Tensor]) -> Tensor:
        """The form without a branch on what was drawn."""
        images = unit(images)
        for first, last in self.stages:
            stage, drawn = self.operations[first:last], draws[first:last]
            if isinstance(stage[0], Jitter | Gray):
                mix = colour.Colour(drawn, images.dtype)
                images = mix.apply_exactly(images) if self.exact_hue else mix.apply(images)
            elif isinstance(stage[0], Blur):
                images = _blurred(images, drawn[0][:, 0], stage[0].kernel)
            else:
                images = _resampled(images, stage, drawn)
        return images.clamp(0, 1)  # weights add up to 1 but for rounding

    def _apply_to_one(self, image: Tensor, draws: list[list[float]], mixes: dict[int, Any], number: int) -> Tensor:
        for first, last in self.stages:
            stage, drawn = self.operations[first:last], draws[first:last]
            if isinstance(stage[0], Jitter | Gray):
                image = _unit(image)
                if self.exact_hue:
                    image = colour.exact_one(image, drawn)
                elif any(map(_changes, drawn)):
                    matrix, of_means = (part[number] for part in mixes[first])
                    offset = of_means @ image.mean((1, 2))[:, None]
                    image = torch.addmm(offset, matrix, image.view(3, -1)).clamp_(0, 1).view_as(image)
            elif isinstance(stage[0], Blur):
                if drawn[0][0]:
                    image = spatial.blur_one(_unit(image), drawn[0][0], stage[0].kernel)
            else:
                box, size, upright, sideways = _place(stage, drawn, image.shape[-2:])
                image = spatial.resample_one(image, box, size, upright, sideways)
        return _unit(image).clamp(0, 1)

    def _mixes(self, draws: list[Tensor], dtype: torch.dtype) -> dict[int, tuple[Tensor, Tensor]]:
        """Matrices of every colour stage, by its place."""
        if self.exact_hue:
            return {}
        return {
            first: colour.Colour(draws[first:last], dtype).linear()
            for first, last in self.stages
            if isinstance(self.operations[first], Jitter | Gray)
        }

    def out_shape(self, shape: torch.Size) -> tuple[int, int]:
        """Height and width of what comes out of images of such height and width."""
        sizes = [operation.size for operation in self.operations if isinstance(operation, _CROPS)]
        return sizes[-1] if sizes else (shape[0], shape[1])


def _stages(operations: Sequence[Recognised]) -> list[tuple[int, int]]:
    """From and to which operation each stage goes."""
    stages: list[tuple[int, int]] = []
    for number, operation in enumerate(operations):
        before = operations[number - 1] if number else None
        joins = (isinstance(operation, Jitter | Gray) and isinstance(before, Jitter | Gray)) or (
            isinstance(operation, Flip) and isinstance(before, (Flip, *_CROPS))
        )
        if joins:
            stages[-1] = (stages[-1][0], number + 1)
        else:
            stages.append((number, number + 1))
    return stages


def _resampled(images: Tensor, stage: Sequence[Recognised], drawn: list[Tensor]) -> Tensor:
    shape = images.shape[-2:]
    flips = list(zip(stage, drawn, strict=True))
    size, boxes = (shape[0], shape[1]), None
    if isinstance(stage[0], _CROPS):
        size, boxes = stage[0].size, drawn[0]
        flips = flips[1:]
        if isinstance(stage[0], Resize) and size == shape:
            boxes = None
    upright, sideways = (_parity(flips, axis, drawn[0]) for axis in (True, False))
    if boxes is None and not flips:
        return images
    if boxes is None:
        for flip, axis in ((upright, 2), (sideways, 3)):
            images = torch.where(flip[:, None, None, None], images.flip(axis), images)
        return images
    return spatial.resample(images, boxes, size, upright, sideways)


def _parity(flips: list[tuple[Any, Tensor]], upright: bool, like: Tensor) -> Tensor:
    turned = torch.zeros(len(like), dtype=torch.bool, device=like.device)
    for flip, drawn in flips:
        if flip.upright == upright:
            turned = turned ^ (drawn[:, 0] > 0)
    return turned


def _place(stage: Sequence[Recognised], drawn: list[list[float]], shape: torch.Size) -> Any:
    """Box, size, and whether it is turned over upright and sideways, of one image."""
    box, size = [0, 0, shape[0], shape[1]], (shape[0], shape[1])
    turned = [False, False]
    for operation, numbers in zip(stage, drawn, strict=True):
        if isinstance(operation, Flip):
            turned[operation.upright] ^= numbers[0] > 0
        else:
            box, size = [int(number) for number in numbers], operation.size
    return box, size, turned[True], turned[False]


def _blurred(images: Tensor, sigma: Tensor, kernel: tuple[int, int]) -> Tensor:
    if images.device.type != "cpu" or torch.compiler.is_compiling():
        return spatial.blur(images, sigma, kernel)
    drew = sigma.nonzero()[:, 0]
    return images.index_copy(0, drew, spatial.blur(images[drew], sigma[drew], kernel)) if len(drew) else images


def _changes(drawn: list[float]) -> bool:
    return drawn != [1.0] * 3 + [0.0] + drawn[4:] if len(drawn) > 1 else drawn[0] > 0


def _unit(image: Tensor) -> Tensor:
    """(3, H, W) uint8 as contiguous floats in 0..1; floats as they are."""
    if image.dtype != torch.uint8:
        return image.contiguous()
    return torch.empty(image.shape).copy_(image).div_(255)


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
                self.threads = ThreadPoolExecutor(size, "reptk-views")
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


def _in_threads(work: Callable[[int], None], numbers: range) -> None:
    """work(number) for each of the numbers, shared among threads in turn."""
    if torch.get_num_threads() == 1:
        with torch.no_grad():
            for number in numbers:
                work(number)
        return
    pool, threads = _POOL.get(), torch.get_num_threads()

    def share(first: int) -> None:
        with torch.no_grad():
            for number in numbers[first::threads]:
                work(number)

    for done in [pool.submit(share, first) for first in range(threads)]:
        done.result()
