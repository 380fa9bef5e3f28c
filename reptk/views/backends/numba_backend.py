"""The operations for a CPU, image by image, in loops compiled with numba.

Whole batches cost torch many passes over products that are mostly zeros, and single images more calls than work. Here each
pass runs image by image, does only what the image drew, and finds it in the cache. Results are those of `torch_backend` to
rounding, on any number of threads.

This module imports numba, so it is loaded by `reptk.core.numba_jit.load_kernels` alone. A compiled function is cached until
this file changes: it must not use constants of other modules, which are passed as arguments instead.

A kernel processes the images `first` to `last`, from `source` to `target` or in place. Images are (n, 3, H, W), or
(n, 3, pixels) for color, of floats in 0..1.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from reptk.core.images import float_type, scale_to_unit
from reptk.core.numba_jit import njit
from reptk.core.threads import parallel_for
from reptk.views import operations
from reptk.views.backends.torch_backend import chunk_length
from reptk.views.passes import BlurPass, ColorPass, Pass, SpatialPass, with_params

NEGLIGIBLE = 1e-7
"""Weights of a Gaussian below this share of its peak are left out in float32, where they change nothing."""

Kernel = Callable[[int, int], None]
"""Processes the images from the first number up to the second."""


class NumbaBackend:
    """A `Backend` of compiled loops, for float32 and float64 on a CPU."""

    def __init__(self, passes: Sequence[Pass]) -> None:
        self.passes = passes

    def run(self, images: Tensor, params: Sequence[Tensor], out: Tensor | None = None) -> Tensor:
        shapes = [tuple(images.shape[-2:])]
        for pass_ in self.passes:
            shapes.append(pass_.output_shape(shapes[-1]))
        if out is None:
            out = torch.empty(len(images), 3, *shapes[-1], dtype=float_type(images))
        spatial = [number for number, pass_ in enumerate(self.passes) if isinstance(pass_, SpatialPass)]
        source = images
        if 0 not in spatial:
            # The first pass works in place, so it needs floats, in memory that nobody else uses.
            source = torch.empty(images.shape, dtype=out.dtype) if spatial else out
            torch.clamp(scale_to_unit(images), 0, 1, out=source)
        # Spatial passes write to new memory, the last one to `out`; color and blur passes change it in place.
        kernels = []
        for number, (pass_, tables) in enumerate(with_params(self.passes, params)):
            target = source
            if number in spatial:
                is_last = number == spatial[-1]
                target = out if is_last else out.new_empty(len(images), 3, *shapes[number + 1])
            kernels.append(_kernel(pass_, source, target, tables))
            source = target
        length = chunk_length(images, out)

        # All passes of a chunk before the next chunk, which keeps it in the cache.
        def run_range(first: int, last: int) -> None:
            for start in range(first, last, length):
                for kernel in kernels:
                    kernel(start, min(start + length, last))

        parallel_for(run_range, len(images))
        return out


def _kernel(pass_: Pass, source: Tensor, target: Tensor, params: Sequence[Tensor]) -> Kernel:
    if isinstance(pass_, SpatialPass):
        return _spatial_kernel(pass_, source, target, params)
    if isinstance(pass_, BlurPass):
        return _blur_kernel(pass_, target, params)
    if pass_.is_exact:
        steps = torch.cat(pass_.steps(params, torch.float64), dim=1).numpy()
        return partial(apply_color_steps, target.flatten(2).numpy(), steps, np.array(operations.LUMA))
    return _color_kernel(pass_, target, params)


def _spatial_kernel(spatial: SpatialPass, source: Tensor, target: Tensor, params: Sequence[Tensor]) -> Kernel:
    if spatial.crop is None:
        boxes = torch.tensor([[0, 0, *source.shape[-2:]]]).repeat(len(source), 1)
    else:
        boxes = params[0].long()
    is_upside_down = spatial.is_flipped(params, vertical=True).numpy()
    is_mirrored = spatial.is_flipped(params, vertical=False).numpy()
    # Decoded images often are channels_last. They are not copied, which would be another pass over all pixels.
    if source.is_contiguous(memory_format=torch.channels_last) and not source.is_contiguous():
        images = source.permute(0, 2, 3, 1).flatten(2)[:, None].numpy()
    else:
        images = source.contiguous().numpy()
    pixels = target.numpy()
    white = pixels.dtype.type(255 if source.dtype == torch.uint8 else 1)
    return partial(resample, images, pixels, boxes.numpy(), is_upside_down, is_mirrored, white)


def _color_kernel(colors: ColorPass, target: Tensor, params: Sequence[Tensor]) -> Kernel:
    matrix, mean_weights = colors.matrices(params)
    return partial(apply_color_matrix, target.flatten(2).numpy(), matrix.to(target.dtype).numpy(), mean_weights.numpy())


def _blur_kernel(blurs: BlurPass, target: Tensor, params: Sequence[Tensor]) -> Kernel:
    sigma = params[0][:, 0]
    row_weights, row_reach = _gaussian_weights(sigma, blurs.kernel[0], target.dtype)
    column_weights, column_reach = row_weights, row_reach
    if blurs.kernel[0] != blurs.kernel[1]:
        column_weights, column_reach = _gaussian_weights(sigma, blurs.kernel[1], target.dtype)
    is_applied = blurs.operations[0].is_applied(params[0]).numpy()
    return partial(blur, target.numpy(), is_applied, row_weights, row_reach, column_weights, column_reach)


def _gaussian_weights(sigma: Tensor, kernel: int, dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Return weights (n, kernel // 2 + 1) of distances 0, 1, ..., and the largest distance (n,) that is not negligible."""
    distances = torch.arange(kernel // 2 + 1, dtype=torch.float64)
    weights = operations.gaussian(distances, sigma.double())
    # Every distance but 0 occurs on both sides.
    totals = 2 * weights.sum(1, keepdim=True) - 1
    negligible = NEGLIGIBLE if dtype == torch.float32 else 0.0
    reach = (weights > negligible).sum(1) - 1
    return (weights.to(dtype) / totals).to(dtype).numpy(), reach.numpy()


@njit
def _clip(value, one):
    """The value in 0..1, in the type of `one`; NaN stays."""
    zero = one - one
    return zero if value < zero else (one if value > one else value)


@njit
def _clip_all(values):
    """`_clip`, in place."""
    # A Python 1.0 would make numba compute in float64.
    one = values.dtype.type(1)
    for x in range(len(values)):
        values[x] = _clip(values[x], one)


# Crop, resize, flip


@njit
def _resize_taps(start, length, extent, is_flipped, stride, places, weights):
    """Fill in which of `extent` pixels contribute to each output pixel of the part [start, start + length), and how much.

    `operations.resize_weights` without its zeros.

    Args:
        stride: distance between neighboring pixels in memory.
        places, weights: (extent or 2, size), of which the first rows are filled, one for each tap.

    Returns:
        The number of taps.
    """
    size = places.shape[1]
    step = length / size
    if length <= size and start >= 0 and start + length <= extent:
        # Enlarged: between two neighbors.
        for x in range(size):
            center = start + (size - x - 0.5 if is_flipped else x + 0.5) * step - 0.5
            center = min(max(center, start), start + length - 1)
            pixel = min(int(center), max(start + length - 2, start))
            places[0, x], places[1, x] = stride * pixel, stride * min(pixel + 1, start + length - 1)
            weights[0, x], weights[1, x] = 1 - (center - pixel), center - pixel
        return 2
    reach = max(step, 1.0)
    # Only pixels of the image count: a RandomCrop's part may reach beyond it.
    begin, end = max(start, 0), min(start + length, extent)
    unused = stride * max(min(begin, end - 1), 0)
    taps = min(len(places), int(np.ceil(2 * reach)) + 1) if step > 1 else 2
    for x in range(size):
        center = start + (size - x - 0.5 if is_flipped else x + 0.5) * step
        count, total = 0, 0.0
        for pixel in range(max(begin, int(np.floor(center - reach))), min(end, int(np.ceil(center + reach)))):
            weight = 1.0 - abs(pixel + 0.5 - center) / reach
            if weight > 0:
                places[count, x], weights[count, x] = stride * pixel, weight
                total += weight
                count += 1
        for tap in range(count):
            weights[tap, x] /= total
        # Every output pixel has the same number of taps, so unused ones point to a valid pixel with weight 0.
        for tap in range(count, taps):
            places[tap, x], weights[tap, x] = unused, 0
    return taps


@njit
def resample(source, target, boxes, is_upside_down, is_mirrored, white, first, last):
    """Resize the part `boxes` (n, 4: top, left, height, width) of each image to `target` and flip it.

    Args:
        source: (n, 3, H, W), or (n, 1, H, 3 W) with the channels of a pixel next to each other; may be uint8.
        white: the value of the source that is 1 in the target.
    """
    _, planes, height, length = source.shape
    stride = 3 // planes
    width = length // stride
    out_height, out_width = target.shape[2], target.shape[3]
    dtype = target.dtype
    ys, y_weights = np.empty((max(height, 2), out_height), np.uint32), np.empty((max(height, 2), out_height), dtype)
    xs, x_weights = np.empty((max(width, 2), out_width), np.uint32), np.empty((max(width, 2), out_width), dtype)
    x_near, x_far, near_weights, far_weights = xs[0], xs[1], x_weights[0], x_weights[1]
    # For each output row: blend the input's lines into `lines`, then resize these across.
    lines, one = np.zeros(planes * length, target.dtype), target.dtype.type(1)
    # In a line of planar memory the channels follow each other; in channels-last memory, those of each pixel do.
    next_channel = length if planes == 3 else 1
    reds, greens, blues = lines, lines[next_channel:], lines[2 * next_channel :]
    for number in range(first, last):
        top, left, box_height, box_width = boxes[number]
        y_taps = _resize_taps(top, box_height, height, is_upside_down[number], 1, ys, y_weights)
        x_taps = _resize_taps(left, box_width, width, is_mirrored[number], stride, xs, x_weights)
        begin, end = stride * max(left, 0), stride * max(min(left + box_width, width), 0)
        for y in range(out_height):
            for plane in range(planes):
                image, line = source[number, plane], lines[plane * length + begin : plane * length + end]
                _blend(line, y_weights[0, y], image[ys[0, y], begin:end], y_weights[1, y], image[ys[1, y], begin:end])
                for tap in range(2, y_taps):
                    _add(line, y_weights[tap, y], image[ys[tap, y], begin:end])
            red, green, blue = target[number, 0, y], target[number, 1, y], target[number, 2, y]
            for x in range(out_width):
                near, far, near_weight, far_weight = x_near[x], x_far[x], near_weights[x], far_weights[x]
                red[x] = near_weight * reds[near] + far_weight * reds[far]
                green[x] = near_weight * greens[near] + far_weight * greens[far]
                blue[x] = near_weight * blues[near] + far_weight * blues[far]
            for tap in range(2, x_taps):
                places, weights = xs[tap], x_weights[tap]
                for x in range(out_width):
                    place, weight = places[x], weights[x]
                    red[x] += weight * reds[place]
                    green[x] += weight * greens[place]
                    blue[x] += weight * blues[place]
            for channel in (red, green, blue):
                for x in range(out_width):
                    channel[x] = _clip(channel[x] / white, one)


@njit
def _blend(out, first_weight, first_line, second_weight, second_line):
    type_ = out.dtype.type
    for x in range(len(out)):
        out[x] = first_weight * type_(first_line[x]) + second_weight * type_(second_line[x])


@njit
def _add(out, weight, line):
    type_ = out.dtype.type
    for x in range(len(out)):
        out[x] += weight * type_(line[x])


# Blur


@njit
def blur(target, is_applied, row_weights, row_reach, column_weights, column_reach, first, last):
    """Blur the images in place, reflected at the borders.

    Args:
        is_applied: (n,), which images.
        row_weights, column_weights: (n, radius + 1), of distances 0, 1, ... down and across.
        row_reach, column_reach: (n,), the largest distance that is used.
    """
    _, channels, height, width = target.shape
    margin = column_weights.shape[1] - 1
    lines, padded = np.empty((height, width), target.dtype), np.empty(width + 2 * margin, target.dtype)
    for number in range(first, last):
        if not is_applied[number]:
            continue
        y_weights, x_weights = row_weights[number], column_weights[number]
        y_reach, x_reach = row_reach[number], column_reach[number]
        for channel in range(channels):
            image = target[number, channel]
            for y in range(height):
                line = lines[y]
                _scale(line, y_weights[0], image[y])
                for distance in range(1, y_reach + 1):
                    above, below = image[abs(y - distance)], image[height - 1 - abs(height - 1 - y - distance)]
                    _add_both(line, y_weights[distance], above, below)
            for y in range(height):
                line, out = lines[y], image[y]
                padded[x_reach : x_reach + width] = line
                for distance in range(1, x_reach + 1):
                    padded[x_reach - distance] = line[distance]
                    padded[x_reach + width - 1 + distance] = line[width - 1 - distance]
                _scale(out, x_weights[0], line)
                for distance in range(1, x_reach + 1):
                    _add_both(out, x_weights[distance], padded[x_reach - distance :], padded[x_reach + distance :])
                _clip_all(out)


@njit
def _scale(out, weight, line):
    for x in range(len(out)):
        out[x] = weight * line[x]


@njit
def _add_both(out, weight, first_line, second_line):
    for x in range(len(out)):
        out[x] += weight * (first_line[x] + second_line[x])


# Color


@njit
def apply_color_matrix(target, matrix, mean_weights, first, last):
    """matrix (n, 3, 3) @ pixel + mean_weights (n, 3) @ mean pixel, cut to 0..1, in place."""
    pixels = target.shape[2]
    mean = np.empty(3)
    one = target.dtype.type(1)
    for number in range(first, last):
        image, m, weights = target[number], matrix[number], mean_weights[number]
        if _is_identity(m, weights):
            continue
        red, green, blue = image[0], image[1], image[2]
        for channel in range(3):
            mean[channel] = image[channel].sum() / pixels
        offset = target.dtype.type(weights[0] * mean[0] + weights[1] * mean[1] + weights[2] * mean[2])
        (rr, rg, rb), (gr, gg, gb), (br, bg, bb) = m[0], m[1], m[2]
        for x in range(pixels):
            r, g, b = red[x], green[x], blue[x]
            red[x] = _clip(rr * r + rg * g + rb * b + offset, one)
            green[x] = _clip(gr * r + gg * g + gb * b + offset, one)
            blue[x] = _clip(br * r + bg * g + bb * b + offset, one)


@njit
def _is_identity(matrix, mean_weights):
    for row in range(3):
        if mean_weights[row] != 0:
            return False
        for column in range(3):
            if matrix[row, column] != (1 if row == column else 0):
                return False
    return True


@njit
def apply_color_steps(target, steps, luma, first, last):
    """Color steps (n, S, 4) of `ColorOperation.color_steps` one after the other, each cut to 0..1, in place; luma: (3,)."""
    for number in range(first, last):
        image = target[number]
        for step in range(steps.shape[1]):
            color, luma_share, mean_share, turns = steps[number, step]
            is_gray = color == 0 and luma_share == 1
            # A step has one effect (see `color_steps`), so the others need not be computed.
            if turns != 0:
                _shift_hue(image, 6 * turns)
            elif luma_share != 0:
                _add_gray(image, color, luma_share, luma, False)
            elif mean_share != 0:
                _add_gray(image, color, mean_share, luma, True)
            elif color != 1:
                image *= target.dtype.type(color)
            else:
                continue
            if not is_gray:  # which stays in 0..1
                for channel in range(3):
                    _clip_all(image[channel])


@njit
def _add_gray(image, share, gray_share, luma, is_mean):
    """share times the image (3, pixels) and gray_share times its luma, or the mean of that; in place."""
    type_ = image.dtype.type
    red, green, blue = image[0], image[1], image[2]
    share, other = type_(share), type_(gray_share)
    r_weight, g_weight, b_weight = type_(luma[0]), type_(luma[1]), type_(luma[2])
    mean = (luma[0] * red.sum() + luma[1] * green.sum() + luma[2] * blue.sum()) / len(red)
    mean = type_(mean)
    for x in range(len(red)):
        gray = other * (mean if is_mean else r_weight * red[x] + g_weight * green[x] + b_weight * blue[x])
        red[x] = share * red[x] + gray
        green[x] = share * green[x] + gray
        blue[x] = share * blue[x] + gray


@njit
def _shift_hue(image, sixths):
    """`torch_backend.shift_hue` of (3, pixels), in place; a turn has six sixths."""
    for x in range(image.shape[1]):
        red, green, blue = image[0, x], image[1, x], image[2, x]
        value = max(red, green, blue)
        chroma = value - min(red, green, blue)
        if chroma > 0:
            if value == red:
                sixth = (green - blue) / chroma
            elif value == green:
                sixth = 2 + (blue - red) / chroma
            else:
                sixth = 4 + (red - green) / chroma
            for channel in range(3):
                k = sixth + sixths + (5 - 2 * channel)
                k -= 6 * np.floor(k / 6)
                image[channel, x] = value - chroma * min(max(min(k, 4 - k), 0.0), 1.0)
