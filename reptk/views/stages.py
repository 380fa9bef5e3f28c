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

    def by_kernel(self, kernels: ModuleType, source: Tensor, target: Tensor, draws: list[Tensor]) -> Pass:
        """What makes (n, 3, h, w) `target`, contiguous, of (n, 3, H, W) `source`, uint8 or floats.

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

    def by_kernel(self, kernels: ModuleType, source: Tensor, target: Tensor, draws: list[Tensor]) -> Pass:
        whole = torch.tensor([[0, 0, *source.shape[-2:]]]).repeat(len(source), 1)
        boxes = (whole if self.crop is None else draws[0].long()).numpy()
        upright, sideways = (self._turned(draws, upright).numpy() for upright in (True, False))
        if source.is_contiguous(memory_format=torch.channels_last) and not source.is_contiguous():
            images = source.permute(0, 2, 3, 1).flatten(2)[:, None].numpy()
        else:
            images = source.contiguous().numpy()
        made = target.numpy()
        most = made.dtype.type(255 if source.dtype == torch.uint8 else 1)
        return lambda first, last: kernels.resample(images, made, boxes, upright, sideways, most, first, last)

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

    def by_kernel(self, kernels: ModuleType, source: Tensor, target: Tensor, draws: list[Tensor]) -> Pass:
        given, quarter = self._for_kernel(target, draws), np.array(colour.QUARTER).reshape(3, 3)
        return lambda first, last: kernels.mix(*given, quarter, first, last)

    @staticmethod
    def _for_kernel(target: Tensor, draws: list[Tensor]) -> tuple[np.ndarray, ...]:
        """Pixels, what was drawn and how many columns each operation has of it, luma."""
        columns = np.array([draw.shape[1] for draw in draws])
        return target.flatten(2).numpy(), torch.cat(draws, dim=1).numpy(), columns, np.array(colour.LUMA)


class ExactColour(Colour):
    """Colour operations one after the other."""

    def prepare(self, draws: list[Tensor], shape: Shape, dtype: torch.dtype) -> tuple[Tensor, ...]:
        return tuple(draw.to(dtype) for draw in draws)

    def on_batch(self, images: Tensor, room: Room, *prepared: Tensor) -> Tensor:
        return colour.apply_exactly(images, prepared)

    def by_kernel(self, kernels: ModuleType, source: Tensor, target: Tensor, draws: list[Tensor]) -> Pass:
        given = self._for_kernel(target, draws)
        return lambda first, last: kernels.step_by_step(*given, first, last)


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

    def by_kernel(self, kernels: ModuleType, source: Tensor, target: Tensor, draws: list[Tensor]) -> Pass:
        images, sigma, kernel = target.numpy(), draws[0][:, 0].contiguous().numpy(), np.array(self.kernel)
        negligible = kernels.NEGLIGIBLE if target.dtype == torch.float32 else 0.0
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
