"""Neighbouring operations that are one pass over the pixels: a crop or resize with the flips behind it, colours, a blur."""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from reptk.views import colour, spatial
from reptk.views.recognised import Blur, Crop, Flip, Gray, Jitter, Recognised, Resize, ResizedCrop
from reptk.views.room import Room

CROPS = (ResizedCrop, Crop, Resize)

Shape = tuple[int, int]
Table = list[list[float]]
"""What one image drew, for each operation of a stage."""
Pass = Callable[[int, int], None]
"""Makes the images from the first number up to the second."""


class Stage(Protocol):
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

    def by_kernel(self, kernels: ModuleType, source: Tensor, target: Tensor, draws: list[Tensor]) -> Pass:
        """What makes (n, 3, h, w) `target` of (n, 3, H, W) `source`, both contiguous.

        A pass that keeps sizes works in place: for it, source and target are one.
        """
        ...


class Spatial:
    """At most one crop or resize, and flips behind it."""

    def __init__(self, first: int, operations: list[Recognised]) -> None:
        self.first, self.operations = first, operations
        self.crop = operations[0] if isinstance(operations[0], CROPS) else None

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

    def by_kernel(self, kernels: ModuleType, source: Tensor, target: Tensor, draws: list[Tensor]) -> Pass:
        whole = torch.tensor([[0, 0, *source.shape[-2:]]]).repeat(len(source), 1)
        boxes = (whole if self.crop is None else draws[0].long()).numpy()
        upright, sideways = (self._turned(draws, upright).numpy() for upright in (True, False))
        images, made = source.numpy(), target.numpy()
        unit = made.dtype.type(1 / 255 if source.dtype == torch.uint8 else 1)
        return lambda first, last: kernels.resample(images, made, boxes, upright, sideways, unit, first, last)

    def _turned(self, draws: list[Tensor], upright: bool) -> Tensor:
        turned = torch.zeros(len(draws[0]), dtype=torch.bool, device=draws[0].device)
        for operation, drawn in zip(self.operations, draws, strict=True):
            if isinstance(operation, Flip) and operation.upright == upright:
                turned = turned ^ (drawn[:, 0] > 0)
        return turned


class Colour:
    """Colour operations as one matrix and an offset."""

    def __init__(self, first: int, operations: list[Recognised]) -> None:
        self.first, self.operations = first, operations

    def prepare(self, draws: list[Tensor], shape: Shape, dtype: torch.dtype) -> tuple[Tensor, ...]:
        return colour.linear(draws, dtype)

    def on_batch(self, images: Tensor, room: Room, *prepared: Tensor) -> Tensor:
        return colour.apply(images, *prepared, room)

    def on_one(self, image: Tensor, drawn: Table, *prepared: Tensor) -> Tensor:
        image, (matrix, of_means) = unit_of_one(image), prepared
        if not any(map(colour.changes, drawn)):
            return image
        offset = of_means @ image.mean((1, 2))[:, None]
        return torch.addmm(offset, matrix, image.view(3, -1)).clamp_(0, 1).view_as(image)

    def by_kernel(self, kernels: ModuleType, source: Tensor, target: Tensor, draws: list[Tensor]) -> Pass:
        pixels, drawn, columns = target.flatten(2).numpy(), torch.cat(draws, dim=1).numpy(), self._columns(draws)
        luma, quarter = np.array(colour.LUMA), np.array(colour.QUARTER).reshape(3, 3)
        return lambda first, last: kernels.mix(pixels, drawn, columns, luma, quarter, first, last)

    @staticmethod
    def _columns(draws: list[Tensor]) -> np.ndarray:
        return np.array([draw.shape[1] for draw in draws])


class ExactColour(Colour):
    """Colour operations one after the other."""

    def prepare(self, draws: list[Tensor], shape: Shape, dtype: torch.dtype) -> tuple[Tensor, ...]:
        return tuple(draw.to(dtype) for draw in draws)

    def on_batch(self, images: Tensor, room: Room, *prepared: Tensor) -> Tensor:
        return colour.apply_exactly(images, prepared)

    def on_one(self, image: Tensor, drawn: Table, *prepared: Tensor) -> Tensor:
        return colour.exact_one(unit_of_one(image), drawn)

    def by_kernel(self, kernels: ModuleType, source: Tensor, target: Tensor, draws: list[Tensor]) -> Pass:
        pixels, drawn, columns = target.flatten(2).numpy(), torch.cat(draws, dim=1).numpy(), self._columns(draws)
        luma = np.array(colour.LUMA)
        return lambda first, last: kernels.step_by_step(pixels, drawn, columns, luma, first, last)


class GaussianBlur:
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
        return spatial.blur_one(unit_of_one(image), sigma, self.kernel) if sigma else image

    def by_kernel(self, kernels: ModuleType, source: Tensor, target: Tensor, draws: list[Tensor]) -> Pass:
        images, sigma, kernel = target.numpy(), draws[0][:, 0].contiguous().numpy(), np.array(self.kernel)
        negligible = spatial.NEGLIGIBLE if target.dtype == torch.float32 else 0.0
        return lambda first, last: kernels.blur(images, sigma, kernel, negligible, first, last)


def stages_of(operations: list[Recognised], exact_hue: bool) -> list[Stage]:
    """Operations in their order, neighbours joined."""
    stages: list[Stage] = []
    for number, operation in enumerate(operations):
        before = operations[number - 1] if number else None
        flips_on = isinstance(operation, Flip) and isinstance(before, (Flip, *CROPS))
        colours_on = isinstance(operation, Jitter | Gray) and isinstance(before, Jitter | Gray)
        if flips_on or colours_on:
            stages[-1].operations.append(operation)
        elif isinstance(operation, Jitter | Gray):
            stages.append((ExactColour if exact_hue else Colour)(number, [operation]))
        else:
            stages.append((GaussianBlur if isinstance(operation, Blur) else Spatial)(number, [operation]))
    return stages


def unit_of_one(image: Tensor) -> Tensor:
    """(3, H, W) uint8 as contiguous floats in 0..1; floats as they are."""
    if image.dtype != torch.uint8:
        return image.contiguous()
    return torch.empty(image.shape).copy_(image).div_(255)
