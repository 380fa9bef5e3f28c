"""Operations that choose the part of an image that is resized, on images that were squashed into squares as well.

A box is drawn in the pixels of the full image, as torchvision draws it, and then squashed as the full image was.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from reptk.core.numba_jit import compile_exact
from reptk.views.operations import Range, Shape, ViewOperation, between

CROP_CANDIDATES = 10
"""Crops tried before the fallback, as in torchvision."""


@dataclass(frozen=True)
class RandomResizedCrop(ViewOperation):
    """A random part of the image, resized. The distribution is torchvision's and kornia's.

    The area is uniform in `scale` times the image's, the logarithm of width / height uniform between those of `ratio`. The
    first of ten candidates that fits is used, otherwise the largest centered crop within `ratio`.

    Parameters: (n, 4) boxes, top, left, height and width in whole pixels.
    """

    num_uniforms: ClassVar[int] = 2 * CROP_CANDIDATES + 2
    crops_full_images: ClassVar[bool] = True
    size: Shape
    scale: Range = (0.08, 1.0)
    ratio: Range = (3 / 4, 4 / 3)

    def sample(self, u: Tensor, shape: Shape, aspect_ratios: Tensor | None = None) -> Tensor:
        """See `ViewOperation.sample`. Of squashed images, boxes are drawn on the full images and then squashed."""
        sides = _sides(len(u), shape, aspect_ratios, u.device)
        boxes = self._boxes(u, sides)
        if aspect_ratios is None:
            return boxes
        return _squash_boxes(boxes, sides, shape)

    def output_shape(self, shape: Shape) -> Shape:
        return self.size

    def _boxes(self, u: Tensor, sides: Tensor) -> Tensor:
        log_ratio = (math.log(self.ratio[0]), math.log(self.ratio[1]))
        fallback = self._largest_centered_crop(sides)
        if u.device.type == "cpu" and not torch.compiler.is_compiling():
            # None without numba: the torch operations below then compute the same boxes.
            fill_crop_boxes = compile_exact(_fill_crop_boxes)
            if fill_crop_boxes is not None:
                boxes = np.empty((len(u), 4), np.float32)
                # numpy scalars, so that the compiled loop computes in float32 as torch does.
                scale_start, scale_span = np.float32(self.scale[0]), np.float32(self.scale[1] - self.scale[0])
                ratio_start, ratio_span = np.float32(log_ratio[0]), np.float32(log_ratio[1] - log_ratio[0])
                arrays = (boxes, u.numpy(), sides.numpy(), fallback.numpy())
                fill_crop_boxes(*arrays, scale_start, scale_span, ratio_start, ratio_span)
                return torch.from_numpy(boxes)
        return _crop_boxes(u, sides, fallback, self.scale, log_ratio)

    def _largest_centered_crop(self, sides: Tensor) -> Tensor:
        """Height and width (n, 2) of the largest part whose width / height lies in `ratio`."""
        height, width = sides.unbind(1)
        narrowest, widest = self.ratio
        reduced_height = (width / narrowest).round().clamp_min(1).minimum(height)
        reduced_width = (height * widest).round().clamp_min(1).minimum(width)
        aspect = width / height
        crop_height = torch.where(aspect < narrowest, reduced_height, height)
        crop_width = torch.where(aspect > widest, reduced_width, width)
        return torch.stack([crop_height, crop_width], dim=1)


def _sides(count: int, shape: Shape, aspect_ratios: Tensor | None, device: torch.device) -> Tensor:
    """Return height and width (n, 2) of full images in whole pixels; the shorter one is that of the squares they are in."""
    height, width = shape
    if aspect_ratios is None:
        # Filled in on the device: a copy would wait for a GPU.
        heights = torch.full((count,), float(height), device=device)
        return torch.stack([heights, torch.full_like(heights, float(width))], dim=1)
    heights = (height / aspect_ratios).round().clamp_min(height)
    widths = (width * aspect_ratios).round().clamp_min(width)
    return torch.stack([heights, widths], dim=1)


def _squash_boxes(boxes: Tensor, sides: Tensor, shape: Shape) -> Tensor:
    """Return boxes (n, 4) in the pixels of images of `shape` into which full images with these sides were squashed."""
    squashed = []
    for axis in (0, 1):
        # Whole pixels, as the backends expect them: at most half a pixel is added or lost at an edge.
        scale = shape[axis] / sides[:, axis]
        start = (boxes[:, axis] * scale).round()
        stop = ((boxes[:, axis] + boxes[:, axis + 2]) * scale).round()
        start = start.clamp_max(shape[axis] - 1)
        squashed.append((start, stop.maximum(start + 1) - start))
    (top, height), (left, width) = squashed
    return torch.stack([top, left, height, width], dim=1)


def _crop_boxes(u: Tensor, sides: Tensor, fallback: Tensor, scale: Range, log_ratio: Range) -> Tensor:
    """(n, 22) uniform numbers -> (n, 4) boxes of RandomResizedCrop in full images with these sides (n, 2)."""
    height, width = sides.unbind(1)
    area = between(u[:, :CROP_CANDIDATES], *scale) * (height * width)[:, None]
    # In float64, where all implementations of exp agree once the result is rounded to float32.
    aspect = between(u[:, CROP_CANDIDATES:-2], *log_ratio).double().exp().float()
    widths = (area * aspect).sqrt().round()
    heights = (area / aspect).sqrt().round()
    fits = (widths > 0) & (widths <= width[:, None]) & (heights > 0) & (heights <= height[:, None])
    # Sums over a mask instead of an index of the first fit, because an index would need a branch for images without any.
    is_first_fit = (fits.int().cumsum(1) == 1) & fits
    has_fit = fits.any(1)
    box_height = torch.where(has_fit, (heights * is_first_fit).sum(1), fallback[:, 0])
    box_width = torch.where(has_fit, (widths * is_first_fit).sum(1), fallback[:, 1])
    random_top = (u[:, -2] * (height - box_height + 1)).floor()
    random_left = (u[:, -1] * (width - box_width + 1)).floor()
    top = torch.where(has_fit, random_top, ((height - box_height) / 2).floor())
    left = torch.where(has_fit, random_left, ((width - box_width) / 2).floor())
    # u close to 1, times a length, can round up to the length.
    top = top.minimum(height - box_height)
    left = left.minimum(width - box_width)
    return torch.stack([top, left, box_height, box_width], dim=1)


def _fill_crop_boxes(boxes, u, sides, fallback, scale_start, scale_span, ratio_start, ratio_span):
    """`_crop_boxes` as one loop, compiled with numba; the same to the bit.

    As torch operations it is thirty passes over all candidates, which take a tenth of the time of small views on a CPU.
    """
    one = np.float32(1)
    candidates = u.shape[1] // 2 - 1
    for row in range(len(u)):
        height, width = sides[row, 0], sides[row, 1]
        box_height, box_width = fallback[row, 0], fallback[row, 1]
        top, left = np.floor((height - box_height) / 2), np.floor((width - box_width) / 2)
        for candidate in range(candidates):
            area = (u[row, candidate] * scale_span + scale_start) * (height * width)
            log_aspect = u[row, candidates + candidate] * ratio_span + ratio_start
            aspect = np.float32(np.exp(np.float64(log_aspect)))
            candidate_width, candidate_height = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
            if 0 < candidate_width <= width and 0 < candidate_height <= height:
                box_height, box_width = candidate_height, candidate_width
                top = min(np.floor(u[row, 2 * candidates] * (height - box_height + one)), height - box_height)
                left = min(np.floor(u[row, 2 * candidates + 1] * (width - box_width + one)), width - box_width)
                break
        boxes[row, 0], boxes[row, 1], boxes[row, 2], boxes[row, 3] = top, left, box_height, box_width


@dataclass(frozen=True)
class RandomCrop(ViewOperation):
    """A part of fixed size of the image and `padding` black pixels around it.

    Parameters: (n, 4) boxes as of RandomResizedCrop, which may begin below 0.
    """

    num_uniforms: ClassVar[int] = 2
    size: Shape
    padding: int = 0

    def sample(self, u: Tensor, shape: Shape) -> Tensor:
        height, width = self.size
        spare_rows = shape[0] + 2 * self.padding - height
        spare_columns = shape[1] + 2 * self.padding - width
        if min(spare_rows, spare_columns) < 0:
            raise ValueError(
                f"images of {shape[1]} x {shape[0]} px, padded by {self.padding}, are smaller than the crop of "
                f"{width} x {height} px; put a Resize before it"
            )
        top = (u[:, 0] * (spare_rows + 1)).floor() - self.padding
        left = (u[:, 1] * (spare_columns + 1)).floor() - self.padding
        return torch.stack([top, left, torch.full_like(top, height), torch.full_like(top, width)], dim=1)

    def output_shape(self, shape: Shape) -> Shape:
        return self.size


@dataclass(frozen=True)
class Resize(ViewOperation):
    """The whole image at one size, antialiased, whatever its proportions. Parameters: (n, 4) boxes as of RandomResizedCrop."""

    num_uniforms: ClassVar[int] = 0
    crops_full_images: ClassVar[bool] = True
    size: Shape

    def sample(self, u: Tensor, shape: Shape, aspect_ratios: Tensor | None = None) -> Tensor:
        # A squashed image is resized from one square to another.
        zero = torch.zeros(len(u), device=u.device)
        return torch.stack([zero, zero, zero + shape[0], zero + shape[1]], dim=1)

    def output_shape(self, shape: Shape) -> Shape:
        return self.size


@dataclass(frozen=True)
class CenterSquare(ViewOperation):
    """The center squares of full images, with their proportions. Parameters: (n, 4) boxes as of RandomResizedCrop."""

    num_uniforms: ClassVar[int] = 0
    crops_full_images: ClassVar[bool] = True
    size: Shape

    def sample(self, u: Tensor, shape: Shape, aspect_ratios: Tensor | None = None) -> Tensor:
        sides = _sides(len(u), shape, aspect_ratios, u.device)
        shorter = sides.amin(1, keepdim=True)
        boxes = torch.cat([((sides - shorter) / 2).floor(), shorter, shorter], dim=1)
        return _squash_boxes(boxes, sides, shape)

    def output_shape(self, shape: Shape) -> Shape:
        return self.size
