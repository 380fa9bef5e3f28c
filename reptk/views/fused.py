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
from typing import Protocol

import torch
from torch import Tensor

from reptk.keyed import uniform
from reptk.views import colour, room, spatial
from reptk.views.plain import float_type, unit
from reptk.views.recognised import Blur, Crop, Flip, Gray, Jitter, Recognised, Resize, ResizedCrop
from reptk.views.room import Room

LARGE_PX = 64
"""On a CPU, images or views with more pixels than a square of this side are made one by one."""

CHUNK_VALUES = 1 << 18
"""On a CPU, small views are made in batches of about so many values, which stay in the cache."""

_CROPS = (ResizedCrop, Crop, Resize)

Shape = tuple[int, int]
Table = list[list[float]]
"""What one image drew, for each operation of a stage."""


class Fused:
    """A run of recognised operations.

    Args:
        operations: in order.
        salts: for each of them, what tells its columns apart from all others that are drawn under one key.
        exact_hue: one colour operation after the other, each cut to 0..1, hue by HSV, as torchvision and kornia do.
    """

    def __init__(
        self, operations: Sequence[Recognised], salts: Sequence[Sequence[int]], exact_hue: bool = False
    ) -> None:
        self.operations = list(operations)
        self.stages = _stages(self.operations, exact_hue)
        self.salts = {torch.device("cpu"): torch.tensor([salt for own in salts for salt in own], dtype=torch.int64)}

    def draw(self, key: int, rows: Tensor, shape: Shape) -> list[Tensor]:
        """A table of numbers for each operation, a row for each of the images `rows`, of `shape` height and width."""
        if rows.device not in self.salts:  # once: a copy from ordinary memory waits for the GPU
            self.salts[rows.device] = self.salts[torch.device("cpu")].to(rows.device)
        u, first, draws = uniform(key, self.salts[rows.device], rows), 0, []
        for operation in self.operations:
            draws.append(operation.draw(u[:, first : first + operation.columns], shape))
            first += operation.columns
            shape = getattr(operation, "size", shape)
        return draws

    def out_shape(self, shape: Shape) -> Shape:
        """Height and width of what comes out of images of such height and width."""
        sizes = [operation.size for operation in self.operations if isinstance(operation, _CROPS)]
        return sizes[-1] if sizes else (shape[0], shape[1])

    def __call__(self, images: Tensor, rows: Tensor, key: int, out: Tensor | None = None) -> Tensor:
        """(n, 3, H, W) uint8, or floats in 0..1 -> (n, 3, h, w) floats in 0..1; on a CPU in `out`, if given."""
        return self.apply(images, self.draw(key, rows, images.shape[-2:]), out)

    def apply(self, images: Tensor, draws: list[Tensor], out: Tensor | None = None) -> Tensor:
        """What `draws` make of images, in the way that is faster here."""
        # Weights add up to 1 but for rounding, so values may reach past 0 and 1 by as much: all are cut in the end.
        if images.device.type != "cpu" or torch.compiler.is_compiling():
            return self.on_batch(images, draws).clamp(0, 1)
        size = self.out_shape(images.shape[-2:])
        made = torch.empty(len(images), 3, *size, dtype=float_type(images)) if out is None else out
        if max(images.shape[-2] * images.shape[-1], size[0] * size[1]) > LARGE_PX**2:
            self.one_by_one(images, draws, made)
        else:
            self.in_chunks(images, draws, made)
        return made

    def on_batch(self, images: Tensor, draws: list[Tensor]) -> Tensor:
        """All images at once, without a branch on what was drawn (but for the CPU, where that is free)."""
        images = unit(images)
        for stage, prepared in self._prepared(images, draws):
            images = stage.on_batch(images, room.new, *prepared)
        return images

    def in_chunks(self, images: Tensor, draws: list[Tensor], made: Tensor) -> None:
        """`on_batch` on as many images at a time as stay in the cache, written to `made`."""
        stages, rooms = self._prepared(images, draws), _rooms(len(self.stages) + 1)
        step = max(1, CHUNK_VALUES // (3 * max(images.shape[-2] * images.shape[-1], made.shape[-2] * made.shape[-1])))
        for first in range(0, len(images), step):
            part = slice(first, first + step)
            some = images[part]
            if some.dtype == torch.uint8:
                some = rooms[-1]("unit", tuple(some.shape), made).copy_(some).div_(255)
            for (stage, prepared), kept in zip(stages, rooms, strict=False):
                some = stage.on_batch(some, kept, *(value[part] for value in prepared))
            torch.clamp(some, 0, 1, out=made[part])

    def one_by_one(self, images: Tensor, draws: list[Tensor], made: Tensor) -> None:
        """Image by image, of which only what it drew is done, by as many threads as torch has."""
        if images.dtype == torch.uint8:
            images = images.contiguous(memory_format=torch.channels_last)
        tables = [draw.tolist() for draw in draws]
        stages = [(stage, range(stage.first, stage.first + len(stage.operations))) for stage in self.stages]
        mixes = [
            stage.prepare([draws[place] for place in their], images.shape[-2:], made.dtype)
            if isinstance(stage, _Colour)
            else ()
            for stage, their in stages
        ]

        def one(number: int) -> None:
            image = images[number]
            for (stage, their), mix in zip(stages, mixes, strict=True):
                image = stage.on_one(image, [tables[place][number] for place in their], *(part[number] for part in mix))
            torch.clamp(_unit(image), 0, 1, out=made[number])

        _in_threads(one, range(len(images)))

    def _prepared(self, images: Tensor, draws: list[Tensor]) -> list[tuple["_Stage", tuple[Tensor, ...]]]:
        shape, dtype, made = tuple(images.shape[-2:]), float_type(images), []
        for stage in self.stages:
            drawn = draws[stage.first : stage.first + len(stage.operations)]
            made.append((stage, stage.prepare(drawn, shape, dtype)))
            shape = getattr(stage.operations[0], "size", shape)
        return made


class _Stage(Protocol):
    """Neighbouring operations that are one pass over the pixels; `first` is the place of the first of them."""

    first: int
    operations: list[Recognised]

    def prepare(self, draws: list[Tensor], shape: Shape, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """What the pass needs to know of each image, worked out from what it drew: tensors of n rows."""
        ...

    def on_batch(self, images: Tensor, room: Room, *prepared: Tensor) -> Tensor:
        """(n, 3, H, W) floats in 0..1 -> (n, 3, h, w)."""
        ...

    def on_one(self, image: Tensor, drawn: Table, *prepared: Tensor) -> Tensor:
        """(3, H, W) uint8 or floats -> (3, h, w)."""
        ...


class _Spatial:
    """At most one crop or resize, and flips behind it."""

    def __init__(self, first: int, operations: list[Recognised]) -> None:
        self.first, self.operations = first, operations
        self.crop = operations[0] if isinstance(operations[0], _CROPS) else None

    def prepare(self, draws: list[Tensor], shape: Shape, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Which images are to be flipped upright and sideways; or, where they are cut out or resized, `spatial.places`."""
        turned = tuple(self._turned(draws, upright) for upright in (True, False))
        if self.crop is None:
            return turned
        if isinstance(self.crop, Resize) and self.crop.size == shape:
            return turned if len(self.operations) > 1 else ()
        boxes, flips, made = draws[0].to(dtype), torch.stack(turned, dim=1), []
        for axes in self._alike(shape):
            start, length = boxes[:, :2][:, axes], boxes[:, 2:][:, axes]
            made += [spatial.places(start, length, self.crop.size[axes.start], flips[:, axes]), start, length]
        return tuple(made)

    def on_batch(self, images: Tensor, room: Room, *prepared: Tensor) -> Tensor:
        if len(prepared) <= 2:
            for turned, axis in zip(prepared, (2, 3), strict=False):
                images = torch.where(turned[:, None, None, None], images.flip(axis), images)
            return images
        maps: list[Tensor] = []
        for number, axes in enumerate(self._alike(images.shape[-2:])):
            size, extent = self.crop.size[axes.start], images.shape[2 + axes.start]
            places = prepared[3 * number : 3 * number + 3]
            made = room(f"maps {number}", (*places[0].shape, extent), images)
            is_enlarged = size >= extent and not isinstance(self.crop, Crop)
            weigh = spatial.enlarging_weights if is_enlarged else spatial.weights
            maps += weigh(*places, extent, made).unbind(1)
        return spatial.products(images, *maps, room)

    def _alike(self, shape: Sequence[int]) -> list[slice]:
        """Axes that can be treated in one go, since the same sizes come in and go out."""
        is_square = self.crop.size[0] == self.crop.size[1] and shape[0] == shape[1]
        return [slice(0, 2)] if is_square else [slice(0, 1), slice(1, 2)]

    def on_one(self, image: Tensor, drawn: Table, *prepared: Tensor) -> Tensor:
        shape = (image.shape[-2], image.shape[-1])
        box, size = [0, 0, *shape], shape
        turned = {True: False, False: False}
        for operation, numbers in zip(self.operations, drawn, strict=True):
            if isinstance(operation, Flip):
                turned[operation.upright] ^= numbers[0] > 0
            else:
                box, size = [int(number) for number in numbers], operation.size
        return spatial.resample_one(image, box, size, turned[True], turned[False])

    def _turned(self, draws: list[Tensor], upright: bool) -> Tensor:
        turned = torch.zeros(len(draws[0]), dtype=torch.bool, device=draws[0].device)
        for operation, drawn in zip(self.operations, draws, strict=True):
            if isinstance(operation, Flip) and operation.upright == upright:
                turned = turned ^ (drawn[:, 0] > 0)
        return turned


class _Colour:
    """Colour operations as one matrix and an offset."""

    def __init__(self, first: int, operations: list[Recognised]) -> None:
        self.first, self.operations = first, operations

    def prepare(self, draws: list[Tensor], shape: Shape, dtype: torch.dtype) -> tuple[Tensor, ...]:
        return colour.linear(draws, dtype)

    def on_batch(self, images: Tensor, room: Room, *prepared: Tensor) -> Tensor:
        return colour.apply(images, *prepared, room)

    def on_one(self, image: Tensor, drawn: Table, *prepared: Tensor) -> Tensor:
        image, (matrix, of_means) = _unit(image), prepared
        if not any(map(colour.changes, drawn)):
            return image
        offset = of_means @ image.mean((1, 2))[:, None]
        return torch.addmm(offset, matrix, image.view(3, -1)).clamp_(0, 1).view_as(image)


class _ExactColour(_Colour):
    """Colour operations one after the other."""

    def prepare(self, draws: list[Tensor], shape: Shape, dtype: torch.dtype) -> tuple[Tensor, ...]:
        return tuple(draw.to(dtype) for draw in draws)

    def on_batch(self, images: Tensor, room: Room, *prepared: Tensor) -> Tensor:
        return colour.apply_exactly(images, prepared)

    def on_one(self, image: Tensor, drawn: Table, *prepared: Tensor) -> Tensor:
        return colour.exact_one(_unit(image), drawn)


class _Blur:
    """A Gaussian."""

    def __init__(self, first: int, operations: list[Recognised]) -> None:
        self.first, self.operations = first, operations
        self.kernel = operations[0].kernel

    def prepare(self, draws: list[Tensor], shape: Shape, dtype: torch.dtype) -> tuple[Tensor, ...]:
        return (draws[0][:, 0].to(dtype),)

    def on_batch(self, images: Tensor, room: Room, *prepared: Tensor) -> Tensor:
        sigma = prepared[0]
        if images.device.type != "cpu" or torch.compiler.is_compiling():
            return spatial.blur(images, sigma, self.kernel, room)
        drew = sigma.nonzero()[:, 0]
        return (
            images.index_copy(0, drew, spatial.blur(images[drew], sigma[drew], self.kernel, room))
            if len(drew)
            else images
        )

    def on_one(self, image: Tensor, drawn: Table, *prepared: Tensor) -> Tensor:
        sigma = drawn[0][0]
        return spatial.blur_one(_unit(image), sigma, self.kernel) if sigma else image


def _stages(operations: list[Recognised], exact_hue: bool) -> list[_Stage]:
    stages: list[_Stage] = []
    for number, operation in enumerate(operations):
        before = operations[number - 1] if number else None
        flips_on = isinstance(operation, Flip) and isinstance(before, (Flip, *_CROPS))
        colours_on = isinstance(operation, Jitter | Gray) and isinstance(before, Jitter | Gray)
        if flips_on or colours_on:
            stages[-1].operations.append(operation)
        elif isinstance(operation, Jitter | Gray):
            stages.append((_ExactColour if exact_hue else _Colour)(number, [operation]))
        else:
            stages.append((_Blur if isinstance(operation, Blur) else _Spatial)(number, [operation]))
    return stages


_KEPT = threading.local()


def _rooms(count: int) -> list[room.Kept]:
    """Memory that this thread keeps, a room for each stage, so that none writes over what it reads."""
    kept = _KEPT.__dict__.setdefault("rooms", [])
    kept += [room.Kept() for _ in range(count - len(kept))]
    return kept


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
