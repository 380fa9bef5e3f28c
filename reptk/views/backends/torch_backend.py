"""The operations as torch operations on whole batches, for a GPU, for `torch.compile`, and for a CPU without numba.

Nothing depends on what an image drew, so nothing synchronises with a GPU. On a CPU, where a branch costs nothing, images
that drew no blur or hue skip it, and the batch is cut into parts that fit the cache.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from reptk.core.images import float_type, scale_to_unit
from reptk.views.buffers import Scratch, no_scratch, thread_scratch
from reptk.views.crops import RandomCrop, Resize
from reptk.views.operations import (
    Shape,
    enlarging_weights,
    gaussian,
    luma,
    mix_with_gray,
    resize_weights,
    source_centers,
)
from reptk.views.passes import BlurPass, ColorPass, Pass, SpatialPass, with_params

CHUNK_VALUES = 1 << 18
"""On a CPU, this many values are processed at a time, which stay in the cache from one pass to the next."""

Prepared = tuple[Tensor, ...]
"""What a pass computes from the parameters before it has any pixels: tensors of n rows."""


def is_batched(images: Tensor) -> bool:
    """Return whether the images must be processed all at once, without a branch on what they drew."""
    return images.device.type != "cpu" or torch.compiler.is_compiling()


def chunk_length(images: Tensor, out: Tensor) -> int:
    """Return how many images have `CHUNK_VALUES` values, before or after the operations."""
    pixels = max(images.shape[-2] * images.shape[-1], out.shape[-2] * out.shape[-1])
    return max(1, CHUNK_VALUES // (3 * pixels))


class TorchBackend:
    """A `Backend` of torch operations."""

    def __init__(self, passes: Sequence[Pass]) -> None:
        self.passes = passes
        self.executors = [_executor(pass_) for pass_ in passes]

    def run(self, images: Tensor, params: Sequence[Tensor], out: Tensor | None = None) -> Tensor:
        if is_batched(images):
            return self.run_batch(images, params)
        if out is None:
            shape = images.shape[-2:]
            for pass_ in self.passes:
                shape = pass_.output_shape(shape)
            out = torch.empty(len(images), 3, *shape, dtype=float_type(images))
        self.run_chunks(images, params, out)
        return out

    def run_batch(self, images: Tensor, params: Sequence[Tensor]) -> Tensor:
        """All images at once."""
        images = scale_to_unit(images)
        for executor, prepared in zip(self.executors, self._prepare(images, params), strict=True):
            images = executor.run(images, prepared, no_scratch)
        # Weights add up to 1 but for rounding, so values may exceed 0..1 by as much.
        return images.clamp(0, 1)

    def run_chunks(self, images: Tensor, params: Sequence[Tensor], out: Tensor) -> None:
        """As many images at a time as stay in the cache, written to `out`."""
        prepared_of_passes = self._prepare(images, params)
        *scratch_of_passes, unit_scratch = thread_scratch(len(self.passes) + 1)
        length = chunk_length(images, out)
        for first in range(0, len(images), length):
            rows = slice(first, first + length)
            chunk = images[rows]
            if chunk.dtype == torch.uint8:
                # In scratch memory of its own, as the passes overwrite theirs.
                chunk = unit_scratch("unit", tuple(chunk.shape), out).copy_(chunk).div_(255)
            for executor, prepared, scratch in zip(self.executors, prepared_of_passes, scratch_of_passes, strict=True):
                chunk = executor.run(chunk, tuple(value[rows] for value in prepared), scratch)
            torch.clamp(chunk, 0, 1, out=out[rows])

    def _prepare(self, images: Tensor, params: Sequence[Tensor]) -> list[Prepared]:
        shape, dtype = tuple(images.shape[-2:]), float_type(images)
        prepared = []
        for executor, (pass_, tables) in zip(self.executors, with_params(self.passes, params), strict=True):
            prepared.append(executor.prepare(tables, shape, dtype))
            shape = pass_.output_shape(shape)
        return prepared


class _TorchSpatial:
    """Crop, resize and flips as two products: a map of the rows and one of the columns."""

    def __init__(self, spatial: SpatialPass) -> None:
        self.spatial = spatial

    def prepare(self, params: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> Prepared:
        """Return which images are flipped, if no pixel is resampled; otherwise, for each group of axes (`_axis_groups`), the
        centers of the output pixels, and the start and length of the part."""
        flips = tuple(self.spatial.is_flipped(params, vertical=vertical) for vertical in (True, False))
        crop = self.spatial.crop
        if crop is None:
            return flips
        if isinstance(crop, Resize) and crop.size == shape:
            has_flips = len(self.spatial.operations) > 1
            if has_flips:
                return flips
            return ()
        boxes = params[0].to(dtype)
        starts, lengths, is_flipped = boxes[:, :2], boxes[:, 2:], torch.stack(flips, dim=1)
        prepared = []
        for axes in _axis_groups(crop.size, shape):
            start, length = starts[:, axes], lengths[:, axes]
            prepared += [source_centers(start, length, crop.size[axes.start], is_flipped[:, axes]), start, length]
        return tuple(prepared)

    def run(self, images: Tensor, prepared: Prepared, scratch: Scratch) -> Tensor:
        # `prepare` returned flips alone, or nothing: resampling needs three tensors or six.
        if len(prepared) <= 2:
            # strict=False, because without flips there is nothing to iterate over.
            for is_flipped, axis in zip(prepared, (2, 3), strict=False):
                images = torch.where(is_flipped[:, None, None, None], images.flip(axis), images)
            return images
        crop, shape = self.spatial.crop, images.shape[-2:]
        maps = []
        for number, axes in enumerate(_axis_groups(crop.size, shape)):
            centers, start, length = prepared[3 * number : 3 * number + 3]
            size, extent = crop.size[axes.start], shape[axes.start]
            out = scratch(f"maps {number}", (*centers.shape, extent), images)
            # The part of a RandomCrop may reach into the padding.
            if size >= extent and not isinstance(crop, RandomCrop):
                weights = enlarging_weights(centers, start, length, extent, out)
            else:
                weights = resize_weights(centers, start, length, extent, out)
            maps += weights.unbind(1)
        return _resample(images, *maps, scratch)


class _TorchColor:
    """Color operations as one matrix and an offset for each image, and a cut to 0..1 at the end."""

    def __init__(self, colors: ColorPass) -> None:
        self.colors = colors

    def prepare(self, params: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> Prepared:
        # In float64, so that the matrix of an unchanged image is the identity once it is rounded.
        matrix, mean_weights = self.colors.matrices(params)
        return matrix.to(dtype), mean_weights.to(dtype)

    def run(self, images: Tensor, prepared: Prepared, scratch: Scratch) -> Tensor:
        matrix, mean_weights = prepared
        # The offset is gray: (n, 1, 1), added to all channels.
        offset = mean_weights[:, None] @ images.mean((2, 3))[:, :, None]
        pixels = images.flatten(2)
        out = torch.baddbmm(offset, matrix, pixels, out=scratch("colors", tuple(pixels.shape), images))
        return out.clamp_(0, 1).view_as(images)


class _TorchExactColor:
    """Color operations one after the other, each cut to 0..1, hue in HSV, as in torchvision and kornia."""

    def __init__(self, colors: ColorPass) -> None:
        self.colors = colors

    def prepare(self, params: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> Prepared:
        return tuple(self.colors.steps(params, dtype))

    def run(self, images: Tensor, prepared: Prepared, scratch: Scratch) -> Tensor:
        for steps in prepared:
            if steps.shape[1] == 1:  # to gray, which has no mean and no hue, and stays within 0..1
                matrices = mix_with_gray(steps[:, 0, 0], steps[:, 0, 1])
                images = torch.bmm(matrices, images.flatten(2)).view_as(images)
            else:
                for step in steps.unbind(1):
                    images = _color_step(images, step)
        return images


def _color_step(images: Tensor, step: Tensor) -> Tensor:
    """One step (n, 4) of `color_steps`, cut to 0..1."""
    color, luma_share, mean_share, turns = step.unbind(1)
    mean = luma(images.mean((2, 3))[:, :, None, None])[:, 0, 0]
    offset = mean_share[:, None, None] * mean[:, None]
    matrices = mix_with_gray(color, luma_share)
    mixed = torch.baddbmm(offset, matrices, images.flatten(2)).clamp_(0, 1).view_as(images)
    if is_batched(images):
        has_turn = (turns != 0).view(-1, 1, 1, 1)
        return torch.where(has_turn, shift_hue(images, turns.view(-1, 1, 1)), mixed)
    turned = turns.nonzero()[:, 0]
    if len(turned) == 0:
        return mixed
    return mixed.index_copy_(0, turned, shift_hue(images[turned], turns[turned].view(-1, 1, 1)))


class _TorchBlur:
    """A Gaussian as two products, each with a band matrix."""

    def __init__(self, blur: BlurPass) -> None:
        self.kernel = blur.kernel

    def prepare(self, params: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> Prepared:
        return (params[0][:, 0].to(dtype),)

    def run(self, images: Tensor, prepared: Prepared, scratch: Scratch) -> Tensor:
        (sigma,) = prepared
        if is_batched(images):
            return blur(images, sigma, self.kernel, scratch)
        blurred = sigma.nonzero()[:, 0]
        if len(blurred) == 0:
            return images
        return images.index_copy(0, blurred, blur(images[blurred], sigma[blurred], self.kernel, scratch))


def _executor(pass_: Pass) -> _TorchSpatial | _TorchColor | _TorchExactColor | _TorchBlur:
    if isinstance(pass_, SpatialPass):
        return _TorchSpatial(pass_)
    if isinstance(pass_, BlurPass):
        return _TorchBlur(pass_)
    if pass_.is_exact:
        return _TorchExactColor(pass_)
    return _TorchColor(pass_)


def _axis_groups(size: Shape, shape: Sequence[int]) -> list[slice]:
    """The axes, 0 vertical and 1 horizontal, in groups that are computed at once because their sizes agree."""
    is_square = size[0] == size[1] and shape[0] == shape[1]
    if is_square:
        return [slice(0, 2)]
    return [slice(0, 1), slice(1, 2)]


def _resample(images: Tensor, row_maps: Tensor, column_maps: Tensor, scratch: Scratch) -> Tensor:
    """row_maps (n, h, H) @ images (n, 3, H, W) @ column_maps (n, w, W)^T -> (n, 3, h, w).

    On CUDA, float32 goes through the tensor cores as float16, whose 11 bits hold values in 0..1 to a sixteenth of 1/255.
    """
    if images.is_cuda and images.dtype == torch.float32:
        return _resample(images.half(), row_maps.half(), column_maps.half(), scratch).float()
    count, channels, height, width = images.shape
    out_height, out_width = row_maps.shape[1], column_maps.shape[1]
    narrow = scratch("narrow", (count, channels * height, out_width), images)
    narrow = torch.bmm(images.reshape(count, channels * height, width), column_maps.transpose(1, 2), out=narrow)
    # One map for each channel: a product with a map that three channels share would copy it as well.
    maps = row_maps[:, None].expand(-1, channels, -1, -1).reshape(-1, out_height, height)
    out = scratch("resampled", (count * channels, out_height, out_width), images)
    out = torch.bmm(maps, narrow.view(-1, height, out_width), out=out)
    return out.view(count, channels, out_height, out_width)


def shift_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Return images (..., 3, H, W) in 0..1 with their hue in HSV shifted; turns are broadcast to (..., H, W)."""
    value, smallest = images.amax(-3), images.amin(-3)
    chroma = value - smallest
    red, green, blue = images.unbind(-3)
    span = torch.where(chroma > 0, chroma, 1)  # a gray pixel has no hue, and is not to be divided by 0
    # The hue in sixths of a turn, by the largest channel.
    green_or_blue = torch.where(value == green, 2 + (blue - red) / span, 4 + (red - green) / span)
    sixths = torch.where(value == red, (green - blue) / span, green_or_blue)
    sixths = sixths + 6 * turns
    channels = []
    for shift in (5, 3, 1):
        k = (sixths + shift).remainder(6)
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, dim=-3)


def blur(images: Tensor, sigma: Tensor, kernel: Shape, scratch: Scratch = no_scratch) -> Tensor:
    """Return images (n, 3, H, W) blurred with sigma (n,) in pixels, and unchanged where sigma is 0."""
    sigma = sigma.to(images.dtype)
    row_maps = _band_matrix(_gaussian_weights(sigma, kernel[0]), images.shape[2])
    column_maps = _band_matrix(_gaussian_weights(sigma, kernel[1]), images.shape[3])
    return _resample(images, row_maps, column_maps, scratch)


def _gaussian_weights(sigma: Tensor, kernel: int) -> Tensor:
    offsets = torch.arange(kernel, dtype=sigma.dtype, device=sigma.device) - kernel // 2
    weights = gaussian(offsets, sigma)
    return weights / weights.sum(1, keepdim=True)


def _band_matrix(weights: Tensor, extent: int) -> Tensor:
    """(n, kernel) -> (n, extent, extent): the convolution with reflected borders."""
    kernel = weights.shape[1]
    pixels = torch.arange(extent, device=weights.device)
    offsets = torch.arange(kernel, device=weights.device) - kernel // 2
    # Reflection at both borders, without repeating the border pixel.
    sources = (pixels + offsets[:, None]).abs()
    sources = (extent - 1) - ((extent - 1) - sources).abs()
    is_source = (sources[:, :, None] == pixels).to(weights.dtype)
    return (weights @ is_source.view(kernel, -1)).view(len(weights), extent, extent)
