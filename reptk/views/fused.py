"""Runs of recognised operations as few passes over the pixels: draw for all images, then apply.

Neighbours are joined where that changes nothing: a crop or resize and the flips behind it are one pair of linear maps;
colour operations are one matrix an image. The order of the list is kept.

Applying has two forms that agree to rounding. Whole batches: products and no branch on what was drawn, so nothing waits for
a GPU, and `torch.compile` can have it. Image by image, on a CPU: machine code that does only what an image drew, on data
that stays in the cache, by as many threads as torch has. Where numba is missing, the first form in batches that fit the
cache takes its place.
"""

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from reptk.core import rng
from reptk.core.images import float_type, scale_to_unit
from reptk.core.numba_jit import load_kernels
from reptk.core.threads import parallel_for
from reptk.views import room
from reptk.views.recognised import Recognised, ResizedCrop
from reptk.views.stages import CROPS, Shape, Spatial, Stage, stages_of

CHUNK_VALUES = 1 << 18
"""On a CPU, views are made so many values at a time, which stay in the cache."""


def machine_code() -> ModuleType | None:
    """`reptk.views.kernels`, or None where it cannot be had."""
    return load_kernels("reptk.views.kernels")


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
        self.stages = stages_of(self.operations, exact_hue)
        self.salts = {torch.device("cpu"): torch.tensor([salt for own in salts for salt in own], dtype=torch.int64)}

    def draw(self, key: int, rows: Tensor, shape: Shape) -> list[Tensor]:
        """A table of numbers for each operation, a row for each of the images `rows`, of `shape` height and width."""
        if rows.device not in self.salts:  # once: a copy from ordinary memory waits for the GPU
            self.salts[rows.device] = self.salts[torch.device("cpu")].to(rows.device)
        salts, native = self.salts[rows.device], None if _is_batched(rows) else machine_code()
        u = (rng.uniform if native is None else native.uniform)(key, salts, rows)
        first, draws = 0, []
        for operation in self.operations:
            own = u[:, first : first + operation.columns]
            if native is not None and isinstance(operation, ResizedCrop):
                draws.append(native.resized_crops(operation, own, shape))
            else:
                draws.append(operation.draw(own, shape))
            first += operation.columns
            shape = getattr(operation, "size", shape)
        return draws

    def out_shape(self, shape: Shape) -> Shape:
        """Height and width of what comes out of images of such height and width."""
        sizes = [operation.size for operation in self.operations if isinstance(operation, CROPS)]
        return sizes[-1] if sizes else (shape[0], shape[1])

    def __call__(self, images: Tensor, rows: Tensor, key: int, out: Tensor | None = None) -> Tensor:
        """(n, 3, H, W) uint8, or floats in 0..1 -> (n, 3, h, w) floats in 0..1; on a CPU in `out`, if given."""
        return self.apply(images, self.draw(key, rows, images.shape[-2:]), out)

    def apply(self, images: Tensor, draws: list[Tensor], out: Tensor | None = None) -> Tensor:
        """What `draws` make of images, in the way that is faster here."""
        # Weights add up to 1 but for rounding, so values may reach past 0 and 1 by as much: all are cut in the end.
        if _is_batched(images):
            return self.on_batch(images, draws).clamp(0, 1)
        made = out
        if made is None:
            made = torch.empty(len(images), 3, *self.out_shape(images.shape[-2:]), dtype=float_type(images))
        if made.dtype in (torch.float32, torch.float64) and made.is_contiguous() and machine_code() is not None:
            self.by_kernels(images, draws, made)
        else:
            self.in_chunks(images, draws, made)
        return made

    def on_batch(self, images: Tensor, draws: list[Tensor]) -> Tensor:
        """All images at once, without a branch on what was drawn (but for the CPU, where that is free)."""
        images = scale_to_unit(images)
        for stage, prepared in self._prepared(images, draws):
            images = stage.on_batch(images, room.new, *prepared)
        return images

    def in_chunks(self, images: Tensor, draws: list[Tensor], made: Tensor) -> None:
        """`on_batch` on as many images at a time as stay in the cache, written to `made`."""
        stages, rooms = self._prepared(images, draws), room.rooms(len(self.stages) + 1)
        step = _chunk(images, made)
        for first in range(0, len(images), step):
            part = slice(first, first + step)
            some = images[part]
            if some.dtype == torch.uint8:
                some = rooms[-1]("unit", tuple(some.shape), made).copy_(some).div_(255)
            for (stage, prepared), kept in zip(stages, rooms, strict=False):
                some = stage.on_batch(some, kept, *(value[part] for value in prepared))
            torch.clamp(some, 0, 1, out=made[part])

    def by_kernels(self, images: Tensor, draws: list[Tensor], made: Tensor) -> None:
        """Image by image in machine code, as many at a time as stay in the cache from one pass to the next."""
        native, passes = machine_code(), []
        resized = [number for number, stage in enumerate(self.stages) if isinstance(stage, Spatial)]
        source = images
        if 0 not in resized:  # what comes first works in place
            source = torch.empty(images.shape, dtype=made.dtype) if resized else made
            torch.clamp(scale_to_unit(images), 0, 1, out=source)
        for number, stage in enumerate(self.stages):
            target = source
            if number in resized:
                size = getattr(stage.operations[0], "size", source.shape[-2:])
                target = made if number == resized[-1] else made.new_empty(len(images), 3, *size)
            drawn = draws[stage.first : stage.first + len(stage.operations)]
            passes.append(stage.by_kernel(native, source, target, drawn))
            source = target
        step = _chunk(images, made)

        def part(first: int, last: int) -> None:
            for start in range(first, last, step):
                for run in passes:
                    run(start, min(start + step, last))

        parallel_for(part, len(images))

    def _prepared(self, images: Tensor, draws: list[Tensor]) -> list[tuple[Stage, tuple[Tensor, ...]]]:
        shape, dtype, made = tuple(images.shape[-2:]), float_type(images), []
        for stage in self.stages:
            drawn = draws[stage.first : stage.first + len(stage.operations)]
            made.append((stage, stage.prepare(drawn, shape, dtype)))
            shape = getattr(stage.operations[0], "size", shape)
        return made


def _is_batched(images: Tensor) -> bool:
    return images.device.type != "cpu" or torch.compiler.is_compiling()


def _chunk(images: Tensor, made: Tensor) -> int:
    """How many images to take at a time."""
    return max(1, CHUNK_VALUES // (3 * max(images.shape[-2] * images.shape[-1], made.shape[-2] * made.shape[-1])))
