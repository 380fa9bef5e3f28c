"""Runs of recognised operations as few passes over the pixels: draw for all images, then apply.

Neighbours are joined where that changes nothing: a crop or resize and the flips behind it are one pair of linear maps;
colour operations are one matrix an image. The order of the list is kept.

Applying has two forms that agree to rounding. Whole batches: products and no branch on what was drawn, so nothing waits
for a GPU, and `torch.compile` can have it. Image by image, on a CPU and for larger images: only what an image drew is
done, on data that stays in the cache, by as many threads as torch has.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from reptk.keyed import uniform
from reptk.views import room
from reptk.views.plain import float_type, unit
from reptk.views.recognised import Recognised
from reptk.views.stages import CROPS, Colour, Shape, Stage, stages_of, unit_of_one
from reptk.views.threads import in_threads

LARGE_PX = 64
"""On a CPU, images or views with more pixels than a square of this side are made one by one."""

CHUNK_VALUES = 1 << 18
"""On a CPU, small views are made in batches of about so many values, which stay in the cache."""


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
        u, first, draws = uniform(key, self.salts[rows.device], rows), 0, []
        for operation in self.operations:
            draws.append(operation.draw(u[:, first : first + operation.columns], shape))
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
        stages, rooms = self._prepared(images, draws), room.rooms(len(self.stages) + 1)
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
            if isinstance(stage, Colour)
            else ()
            for stage, their in stages
        ]

        def one(number: int) -> None:
            image = images[number]
            for (stage, their), mix in zip(stages, mixes, strict=True):
                image = stage.on_one(image, [tables[place][number] for place in their], *(part[number] for part in mix))
            torch.clamp(unit_of_one(image), 0, 1, out=made[number])

        in_threads(one, range(len(images)))

    def _prepared(self, images: Tensor, draws: list[Tensor]) -> list[tuple[Stage, tuple[Tensor, ...]]]:
        shape, dtype, made = tuple(images.shape[-2:]), float_type(images), []
        for stage in self.stages:
            drawn = draws[stage.first : stage.first + len(stage.operations)]
            made.append((stage, stage.prepare(drawn, shape, dtype)))
            shape = getattr(stage.operations[0], "size", shape)
        return made
