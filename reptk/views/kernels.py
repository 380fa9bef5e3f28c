"""Recognised operations for the CPU as machine code.

Whole batches cost torch many passes over products that are mostly zeros, and single images more calls than work. Here each
pass runs image by image and does only what an image drew. Results are those of `Fused.on_batch` to rounding, on any number
of threads. A kernel makes the images `first` to `last` of `target`: out of those of `source`, or in place. Images are
(n, 3, H, W), or (n, 3, pixels) where colour is all that counts, of floats in 0..1.
"""

import numpy as np
import torch
from torch import Tensor

from reptk.core import rng
from reptk.core.numba_jit import njit, njit_exact
from reptk.views.recognised import ResizedCrop

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
NEGLIGIBLE = 1e-7
"""Weights of a Gaussian below this share of its peak are left out in float32, which does not see them."""
NEUTRAL = np.array([1.0, 1.0, 1.0, 0.0])
"""`recognised.NEUTRAL`, written again: what is njit here is kept until this file changes, whatever others do."""


@njit
def _cut(value, one):
    """In 0..1, of one's type; NaN stays."""
    zero = one - one
    return zero if value < zero else (one if value > one else value)


@njit
def _cut_all(values):
    """`_cut`, in place."""
    one = values.dtype.type(1)
    for x in range(len(values)):
        values[x] = _cut(values[x], one)


# Draws, to the bit those of torch


def uniform(key: int, salts: Tensor, rows: Tensor) -> Tensor:
    """`rng.uniform`."""
    odd = (np.uint64(number % 2**64) for number in (rng.INCREMENT, rng.MULTIPLIER_1, rng.MULTIPLIER_2))
    return torch.from_numpy(_uniform(np.uint64(key), *(part.numpy().view(np.uint64) for part in (salts, rows)), *odd))


@njit_exact
def _uniform(key, salts, rows, step, one, two):
    made = np.empty((len(rows), len(salts)), np.float32)
    for row in range(len(rows)):
        for column in range(len(salts)):
            bits = _mixed(_mixed(rows[row] * step + salts[column], one, two) + key, one, two)
            made[row, column] = np.float32(bits >> np.uint64(40)) * np.float32(2**-24)
    return made


@njit_exact
def _mixed(bits, one, two):
    bits = (bits ^ (bits >> np.uint64(30))) * one
    bits = (bits ^ (bits >> np.uint64(27))) * two
    return bits ^ (bits >> np.uint64(31))


def resized_crops(operation: ResizedCrop, u: Tensor, shape: tuple[int, int]) -> Tensor:
    """`ResizedCrop.draw`."""
    ends = [np.float32(value) for low, high in (operation.scale, operation.log_ratio) for value in (low, high - low)]
    sides = (np.float32(side) for side in (*shape, *operation.largest(shape)))
    return torch.from_numpy(_resized_crops(u.numpy(), *sides, *ends))


@njit_exact
def _resized_crops(u, height, width, fallback_high, fallback_wide, scale, scales, log_ratio, log_ratios):
    made, one, candidates = np.empty((len(u), 4), np.float32), np.float32(1), u.shape[1] // 2 - 1
    for row in range(len(u)):
        high, wide = fallback_high, fallback_wide
        top, left = np.floor((height - high) / 2), np.floor((width - wide) / 2)
        for candidate in range(candidates):
            area = (u[row, candidate] * scales + scale) * (height * width)
            aspect = np.float32(np.exp(np.float64(u[row, candidates + candidate] * log_ratios + log_ratio)))
            wider, higher = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
            if 0 < wider <= width and 0 < higher <= height:
                high, wide = higher, wider
                top = min(np.floor(u[row, 2 * candidates] * (height - high + one)), height - high)
                left = min(np.floor(u[row, 2 * candidates + 1] * (width - wide + one)), width - wide)
                break
        made[row, 0], made[row, 1], made[row, 2], made[row, 3] = top, left, high, wide
    return made


# Where, and how wide


@njit
def _taps(start, length, extent, flip, apart, places, weights):
    """Which pixels, of `extent`, make each output pixel of the part [start, start + length), and what they weigh.

    `spatial.weights` without its zeros. places, weights: (extent or 2, size), of which the rows up to the result are
    filled; pixels lie `apart`.
    """
    size = places.shape[1]
    step = length / size
    if length <= size and start >= 0 and start + length <= extent:  # between two neighbours
        for x in range(size):
            centre = start + (size - x - 0.5 if flip else x + 0.5) * step - 0.5
            centre = min(max(centre, start), start + length - 1)
            pixel = min(int(centre), max(start + length - 2, start))
            places[0, x], places[1, x] = apart * pixel, apart * min(pixel + 1, start + length - 1)
            weights[0, x], weights[1, x] = 1 - (centre - pixel), centre - pixel
        return 2
    reach = max(step, 1.0)
    least, end = max(start, 0), min(start + length, extent)
    nowhere = apart * max(min(least, end - 1), 0)
    most = min(len(places), int(np.ceil(2 * reach)) + 1) if step > 1 else 2
    for x in range(size):
        centre = start + (size - x - 0.5 if flip else x + 0.5) * step
        count, total = 0, 0.0
        for pixel in range(max(least, int(np.floor(centre - reach))), min(end, int(np.ceil(centre + reach)))):
            weight = 1.0 - abs(pixel + 0.5 - centre) / reach
            if weight > 0:
                places[count, x], weights[count, x] = apart * pixel, weight
                total += weight
                count += 1
        for tap in range(count):
            weights[tap, x] /= total
        for tap in range(count, most):
            places[tap, x], weights[tap, x] = nowhere, 0
    return most


@njit
def resample(source, target, boxes, upright, sideways, most, first, last):
    """The part `boxes` (n, 4: top, left, height, width) of each image at the size of `target`, flipped where it drew it.

    Args:
        source: (n, 3, H, W), or (n, 1, H, 3 W) with the channels of a pixel side by side; may be uint8.
        most: the value that is 1 in the target: 255 for uint8.
    """
    _, planes, height, length = source.shape
    apart = 3 // planes
    width = length // apart
    tall, wide = target.shape[2], target.shape[3]
    ys, y_weights = np.empty((max(height, 2), tall), np.uint32), np.empty((max(height, 2), tall), target.dtype)
    xs, x_weights = np.empty((max(width, 2), wide), np.uint32), np.empty((max(width, 2), wide), target.dtype)
    x_near, x_far, near, far = xs[0], xs[1], x_weights[0], x_weights[1]
    lines, one = np.zeros(planes * length, target.dtype), target.dtype.type(1)
    beside = length if planes == 3 else 1  # from a channel to the next
    reds, greens, blues = lines, lines[beside:], lines[2 * beside :]
    for number in range(first, last):
        top, left, high, long = boxes[number]
        downs = _taps(top, high, height, upright[number], 1, ys, y_weights)
        acrosses = _taps(left, long, width, sideways[number], apart, xs, x_weights)
        begin, end = apart * max(left, 0), apart * max(min(left + long, width), 0)
        for y in range(tall):
            for plane in range(planes):
                image, line = source[number, plane], lines[plane * length + begin : plane * length + end]
                _blend(line, y_weights[0, y], image[ys[0, y], begin:end], y_weights[1, y], image[ys[1, y], begin:end])
                for tap in range(2, downs):
                    _add(line, y_weights[tap, y], image[ys[tap, y], begin:end])
            red, green, blue = target[number, 0, y], target[number, 1, y], target[number, 2, y]
            for x in range(wide):
                place, other, share, rest = x_near[x], x_far[x], near[x], far[x]
                red[x] = share * reds[place] + rest * reds[other]
                green[x] = share * greens[place] + rest * greens[other]
                blue[x] = share * blues[place] + rest * blues[other]
            for tap in range(2, acrosses):
                places, shares = xs[tap], x_weights[tap]
                for x in range(wide):
                    place, share = places[x], shares[x]
                    red[x] += share * reds[place]
                    green[x] += share * greens[place]
                    blue[x] += share * blues[place]
            for made in (red, green, blue):
                for x in range(wide):
                    made[x] = _cut(made[x] / most, one)


@njit
def _blend(values, share, some, other_share, others):
    type_ = values.dtype.type
    for x in range(len(values)):
        values[x] = share * type_(some[x]) + other_share * type_(others[x])


@njit
def _add(values, share, others):
    type_ = values.dtype.type
    for x in range(len(values)):
        values[x] += share * type_(others[x])


@njit
def blur(target, sigma, kernel, negligible, first, last):
    """A Gaussian of `sigma` (n,) pixels where it is not 0, cut off at `kernel` (2,) pixels, reflected at the borders."""
    _, channels, height, width = target.shape
    downs, acrosses = kernel[0] // 2, kernel[1] // 2
    y_weights, x_weights = np.empty(downs + 1, target.dtype), np.empty(acrosses + 1, target.dtype)
    lines, wider = np.empty((height, width), target.dtype), np.empty(width + 2 * acrosses, target.dtype)
    for number in range(first, last):
        if sigma[number] == 0:
            continue
        far, wide = _gaussian(sigma[number], y_weights, negligible), _gaussian(sigma[number], x_weights, negligible)
        for channel in range(channels):
            image = target[number, channel]
            for y in range(height):
                line, share = lines[y], y_weights[0]
                _set(line, share, image[y])
                for apart in range(1, far + 1):
                    above, below = image[abs(y - apart)], image[height - 1 - abs(height - 1 - y - apart)]
                    _add_both(line, y_weights[apart], above, below)
            for y in range(height):
                line, made = lines[y], image[y]
                wider[wide : wide + width] = line
                for apart in range(1, wide + 1):
                    wider[wide - apart] = line[apart]
                    wider[wide + width - 1 + apart] = line[width - 1 - apart]
                _set(made, x_weights[0], line)
                for apart in range(1, wide + 1):
                    _add_both(made, x_weights[apart], wider[wide - apart :], wider[wide + apart :])
                _cut_all(made)


@njit
def _set(values, share, others):
    for x in range(len(values)):
        values[x] = share * others[x]


@njit
def _add_both(values, share, some, others):
    for x in range(len(values)):
        values[x] += share * (some[x] + others[x])


@njit
def _gaussian(sigma, weights, negligible):
    """Fill weights[0:] for distances 0, 1, ...; the largest distance whose weight is not negligible."""
    far, total = 0, 0.0
    for apart in range(len(weights)):
        tap = np.exp(-0.5 * (apart / max(sigma, 1e-3)) ** 2)
        total += tap if apart == 0 else 2 * tap
        weights[apart] = tap
        far = apart if tap > negligible else far
    weights /= total
    return far


# Colour


@njit
def mix(target, drawn, columns, luma, quarter, first, last):
    """Colour operations as one matrix and an offset an image, then a cut to 0..1: `colour.linear` and `colour.apply`.

    Args:
        drawn: (n, k) what the operations drew, side by side; `columns` of each, 8 of a jitter and 1 of a grey.
        luma: (3,); quarter: (3, 3), what a quarter turn of the hue adds to the luma.
    """
    pixels = target.shape[2]
    matrix, of_means, mean, offset = np.empty((3, 3)), np.empty((3, 3)), np.empty(3), np.empty(3, target.dtype)
    one = target.dtype.type(1)
    for number in range(first, last):
        if not _mixture(drawn[number], columns, luma, quarter, matrix, of_means):
            continue
        image = target[number]
        red, green, blue = image[0], image[1], image[2]
        for channel in range(3):
            mean[channel] = image[channel].sum() / pixels
        m = matrix.astype(target.dtype)
        for channel in range(3):
            offset[channel] = (
                of_means[channel, 0] * mean[0] + of_means[channel, 1] * mean[1] + of_means[channel, 2] * mean[2]
            )
        r0, g0, b0 = offset
        (rr, rg, rb), (gr, gg, gb), (br, bg, bb) = m[0], m[1], m[2]
        for x in range(pixels):
            r, g, b = red[x], green[x], blue[x]
            red[x] = _cut(rr * r + rg * g + rb * b + r0, one)
            green[x] = _cut(gr * r + gg * g + gb * b + g0, one)
            blue[x] = _cut(br * r + bg * g + bb * b + b0, one)


@njit
def _mixture(drawn, columns, luma, quarter, matrix, of_means):
    """Fill M and K of M x + K mean(x); whether they change anything."""
    for row in range(3):
        for column in range(3):
            matrix[row, column], of_means[row, column] = 1.0 if row == column else 0.0, 0.0
    first, changes = 0, False
    for width in columns:
        if width == 1:
            if drawn[first] > 0:
                changes = True
                _toward_grey(matrix, 0.0, luma)
                _toward_grey(of_means, 0.0, luma)
        else:
            for place in range(4):
                kind = int(drawn[first + 4 + place])
                factor = float(drawn[first + kind])
                if factor == NEUTRAL[kind]:
                    continue
                changes = True
                if kind == BRIGHTNESS:
                    matrix *= factor
                    of_means *= factor
                elif kind == CONTRAST:  # the luma of the mean of what has been made so far, in every channel
                    for column in range(3):
                        grey = _luma(matrix, column, luma) + _luma(of_means, column, luma)
                        for row in range(3):
                            matrix[row, column] *= factor
                            of_means[row, column] = factor * of_means[row, column] + (1 - factor) * grey
                elif kind == SATURATION:
                    _toward_grey(matrix, factor, luma)
                    _toward_grey(of_means, factor, luma)
                else:
                    _turn(matrix, 2 * np.pi * factor, luma, quarter)
                    _turn(of_means, 2 * np.pi * factor, luma, quarter)
        first += width
    return changes


@njit
def _luma(matrix, column, luma):
    return luma[0] * matrix[0, column] + luma[1] * matrix[1, column] + luma[2] * matrix[2, column]


@njit
def _toward_grey(matrix, factor, luma):
    for column in range(3):
        grey = (1 - factor) * _luma(matrix, column, luma)
        for row in range(3):
            matrix[row, column] = factor * matrix[row, column] + grey


@njit
def _turn(matrix, angle, luma, quarter):
    share, rest = np.cos(angle), np.sin(angle)
    for column in range(3):
        r, g, b = matrix[0, column], matrix[1, column], matrix[2, column]
        grey = (1 - share) * _luma(matrix, column, luma)
        for row in range(3):
            turned = quarter[row, 0] * r + quarter[row, 1] * g + quarter[row, 2] * b
            matrix[row, column] = share * matrix[row, column] + grey + rest * turned


@njit
def step_by_step(target, drawn, columns, luma, first, last):
    """Colour operations one after the other, each cut to 0..1, hue by HSV: `colour.apply_exactly`. Arguments as `mix`."""
    for number in range(first, last):
        image, column = target[number], 0
        for width in columns:
            if width == 1:
                if drawn[number, column] > 0:
                    _greyed(image, 0.0, luma, False)
            else:
                for place in range(4):
                    kind = int(drawn[number, column + 4 + place])
                    factor = float(drawn[number, column + kind])
                    if factor == NEUTRAL[kind]:
                        continue
                    if kind == HUE:
                        _shift_hue(image, 6 * factor)
                    elif kind == BRIGHTNESS:
                        image *= target.dtype.type(factor)
                    else:
                        _greyed(image, factor, luma, kind == CONTRAST)
                    for channel in range(3):
                        _cut_all(image[channel])
            column += width


@njit
def _greyed(image, factor, luma, with_mean):
    """factor times the image and 1 - factor times its luma, or the mean of that; (3, pixels), in place."""
    type_ = image.dtype.type
    red, green, blue = image[0], image[1], image[2]
    share, other = type_(factor), type_(1 - factor)
    r_weight, g_weight, b_weight = type_(luma[0]), type_(luma[1]), type_(luma[2])
    mean = (luma[0] * red.sum() + luma[1] * green.sum() + luma[2] * blue.sum()) / len(red)
    mean = type_(mean)
    for x in range(len(red)):
        grey = other * (mean if with_mean else r_weight * red[x] + g_weight * green[x] + b_weight * blue[x])
        red[x] = share * red[x] + grey
        green[x] = share * green[x] + grey
        blue[x] = share * blue[x] + grey


@njit
def _shift_hue(image, sixths):
    """`colour.shift_hue` of (3, pixels), in place; a turn has six sixths."""
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
