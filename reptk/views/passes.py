"""Neighboring operations that are executed as one pass over the pixels.

A crop or resize and the flips behind it are one linear map of the rows and one of the columns. Color operations are one
matrix for each image. The order of the operations is kept.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reptk.views.crops import CenterSquare, RandomCrop, RandomResizedCrop, Resize
from reptk.views.operations import (
    ColorJitter,
    ColorOperation,
    RandomFlip,
    RandomGaussianBlur,
    RandomGrayscale,
    Shape,
    ViewOperation,
    color_matrices,
)

CROPS = (RandomResizedCrop, RandomCrop, Resize, CenterSquare)
COLORS = (ColorJitter, RandomGrayscale)


@dataclass(frozen=True)
class SpatialPass:
    """At most one crop or resize, first, and flips."""

    operations: list[ViewOperation]

    @property
    def crop(self) -> RandomResizedCrop | RandomCrop | Resize | CenterSquare | None:
        first = self.operations[0]
        if isinstance(first, CROPS):
            return first
        return None

    def is_flipped(self, params: Sequence[Tensor], *, vertical: bool) -> Tensor:
        """Return which images (n,) are mirrored along one axis, after all flips."""
        is_flipped = torch.zeros(len(params[0]), dtype=torch.bool, device=params[0].device)
        for operation, table in zip(self.operations, params, strict=True):
            if isinstance(operation, RandomFlip) and operation.is_vertical == vertical:
                # Two flips along one axis cancel.
                is_flipped = is_flipped ^ operation.is_applied(table)
        return is_flipped

    def output_shape(self, shape: Shape) -> Shape:
        # Flips, which follow, keep the size.
        return self.operations[0].output_shape(shape)


@dataclass(frozen=True)
class ColorPass:
    """Color operations. `is_exact`: values are cut to 0..1 after each, and the hue is shifted in HSV."""

    operations: list[ColorOperation]
    is_exact: bool

    def matrices(self, params: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return all operations as one matrix and weights of the mean, of `color_matrices`, in float64."""
        operations = zip(self.operations, params, strict=True)
        return color_matrices([operation.gains(table.double()) for operation, table in operations])

    def steps(self, params: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
        """Return the color steps (n, S, 4) of each operation, computed in this dtype."""
        operations = zip(self.operations, params, strict=True)
        return [operation.color_steps(table.to(dtype)) for operation, table in operations]

    def output_shape(self, shape: Shape) -> Shape:
        return shape


@dataclass(frozen=True)
class BlurPass:
    """One Gaussian blur."""

    operations: list[RandomGaussianBlur]

    @property
    def kernel(self) -> Shape:
        return self.operations[0].kernel

    def output_shape(self, shape: Shape) -> Shape:
        return shape


Pass = SpatialPass | ColorPass | BlurPass


def group_into_passes(operations: Sequence[ViewOperation], *, exact_hue: bool) -> list[Pass]:
    """Group operations into as few passes as keep their order."""
    passes: list[Pass] = []
    for operation in operations:
        previous = passes[-1] if passes else None
        if isinstance(operation, COLORS):
            if isinstance(previous, ColorPass):
                previous.operations.append(operation)
            else:
                passes.append(ColorPass([operation], exact_hue))
        elif isinstance(operation, RandomGaussianBlur):
            passes.append(BlurPass([operation]))
        # Only flips behind a crop can be part of it: a crop of the flipped image is another part of it.
        elif isinstance(operation, RandomFlip) and isinstance(previous, SpatialPass):
            previous.operations.append(operation)
        else:
            passes.append(SpatialPass([operation]))
    return passes


def with_params(passes: Sequence[Pass], params: Sequence[Tensor]) -> Iterator[tuple[Pass, Sequence[Tensor]]]:
    """Yield each pass with the parameters of its operations, from those of all operations in order."""
    first = 0
    for pass_ in passes:
        yield pass_, params[first : first + len(pass_.operations)]
        first += len(pass_.operations)
