"""Brightness, contrast, saturation, hue and greyness of an image as one 3 x 3 matrix and an offset.

Each of them is linear in the pixel, if hue is a rotation about the grey axis at constant luma (as in YIQ), and if values
are cut to 0..1 once, at the end. Contrast needs the image's mean luma, which is linear in its channel means; so for any
order: out = M x + K mean(x), with M and K from the draws alone.

`exact` instead does what torchvision and kornia do: one operation after the other, cut to 0..1 after each, hue by HSV.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from reptk.views.room import Room

LUMA = (0.299, 0.587, 0.114)
"""kornia's and ITU-R BT.601's; torchvision's first weight is 0.2989, so that its three add up to 0.9999."""

# To luma and the two chroma axes of YIQ; a turn of the hue is a turn of the last two. Chroma rows add up to 0.
_YIQ = torch.tensor([LUMA, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)], dtype=torch.float64)
# What a quarter turn adds to the luma.
_TURN = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
QUARTER = tuple((torch.linalg.inv(_YIQ)[:, 1:] @ _TURN @ _YIQ[1:]).flatten().tolist())
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


def linear(draws: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What images drew for a run of colour operations, as matrices: out = M x + K mean(x).

    Args:
        draws: of each operation in turn, Jitter's (n, 8) or Gray's (n, 1).
        dtype: of the result; computed in float64, so that what changes nothing is the identity once rounded.

    Returns:
        M and K, (n, 3, 3) each.
    """
    grey = _grey(torch.float64, draws[0].device)
    matrix = torch.eye(3, dtype=torch.float64, device=draws[0].device).expand(len(draws[0]), 3, 3)
    of_means = torch.zeros_like(matrix)
    for draw in draws:
        if draw.shape[1] == 1:
            step = _mixed_with_grey(1 - draw[:, 0].double())
            matrix, of_means = step @ matrix, step @ of_means
            continue
        factors, order = draw[:, :4].double(), draw[:, 4:].long()
        steps = jitter_matrices(factors).gather(1, order[:, :, None, None].expand(-1, -1, 3, 3))
        # Of the mean luma, contrast adds as much as it takes from the pixel.
        shares = torch.where(order == CONTRAST, 1 - factors[:, CONTRAST, None], 0)
        for step, share in zip(steps.unbind(1), shares.unbind(1), strict=True):
            # The mean of what has been made so far is (M + K) mean(x), and its luma in every channel grey @ that.
            of_means = step @ of_means + share[:, None, None] * (grey @ (matrix + of_means))
            matrix = step @ matrix
    return matrix.to(dtype), of_means.to(dtype)


def apply(images: Tensor, matrix: Tensor, of_means: Tensor, room: Room) -> Tensor:
    """(n, 3, H, W) in 0..1 -> the same: cut to 0..1 at the end."""
    offset = of_means @ images.mean((2, 3))[:, :, None]
    pixels = images.flatten(2)
    made = torch.baddbmm(offset, matrix, pixels, out=room("coloured", tuple(pixels.shape), images))
    return made.clamp_(0, 1).view_as(images)


def apply_exactly(images: Tensor, draws: Sequence[Tensor]) -> Tensor:
    """(n, 3, H, W) in 0..1 -> the same: one operation after the other, each cut to 0..1, hue by HSV."""
    for draw in draws:
        if draw.shape[1] == 1:
            images = torch.bmm(_mixed_with_grey(1 - draw[:, 0]), images.flatten(2)).view_as(images)
            continue
        for place in range(4):
            images = _exact_step(images, draw[:, :4], draw[:, 4 + place])
    return images


def jitter_matrices(factors: Tensor) -> Tensor:
    """(n, 4) factors of brightness, contrast, saturation, hue -> their matrices (n, 4, 3, 3)."""
    eye = torch.eye(3, dtype=factors.dtype, device=factors.device)
    scaled = factors[:, :2, None, None] * eye
    return torch.cat([scaled, torch.stack([_mixed_with_grey(factors[:, 2]), turned(factors[:, 3])], dim=1)], dim=1)


def turned(turns: Tensor) -> Tensor:
    """(n,) turns of the hue -> (n, 3, 3): a rotation of the chroma plane; greys stay as they are."""
    angle = (turns * (2 * math.pi))[:, None, None]
    quarter = _constant(QUARTER, turns.dtype, turns.device)
    return _mixed_with_grey(angle[:, 0, 0].cos()) + angle.sin() * quarter


def shift_hue(images: Tensor, turns: Tensor) -> Tensor:
    """(..., 3, H, W) in 0..1, turns broadcast to (..., H, W) -> the hue of HSV shifted by so many turns."""
    value, least = images.amax(-3), images.amin(-3)
    chroma = value - least
    red, green, blue = images.unbind(-3)
    span = torch.where(chroma > 0, chroma, 1)
    sixth = torch.where(
        value == red,
        (green - blue) / span,
        torch.where(value == green, 2 + (blue - red) / span, 4 + (red - green) / span),
    )
    sixth = sixth + 6 * turns
    channels = []
    for shift in (5, 3, 1):
        k = (sixth + shift).remainder(6)
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, dim=-3)


def luma(image: Tensor) -> Tensor:
    """(..., 3, H, W) -> (..., 1, H, W)."""
    return sum(weight * image.narrow(-3, channel, 1) for channel, weight in enumerate(LUMA))


def _exact_step(images: Tensor, factors: Tensor, kinds: Tensor) -> Tensor:
    """One of the four for each image. On a CPU only those that shift the hue go through HSV; elsewhere all, for no wait."""
    chosen = kinds.long()
    steps = jitter_matrices(factors).gather(1, chosen[:, None, None, None].expand(-1, 1, 3, 3))[:, 0]
    share = torch.where(chosen == CONTRAST, 1 - factors[:, CONTRAST], 0)
    mean = luma(images.mean((2, 3))[:, :, None, None])[:, 0, 0]
    made = torch.baddbmm(share[:, None, None] * mean[:, None], steps, images.flatten(2)).clamp_(0, 1).view_as(images)
    turns, shifts = factors[:, HUE].view(-1, 1, 1), chosen == HUE
    if images.device.type != "cpu" or torch.compiler.is_compiling():
        return torch.where(shifts.view(-1, 1, 1, 1), shift_hue(images, turns), made)
    there = (shifts & (factors[:, HUE] != 0)).nonzero()[:, 0]
    return made.index_copy_(0, there, shift_hue(images[there], turns[there])) if len(there) else made


def _mixed_with_grey(colour: Tensor) -> Tensor:
    """(n,) share of colour -> (n, 3, 3): that share of the pixel and the rest of its luma."""
    share = colour[:, None, None]
    eye = torch.eye(3, dtype=colour.dtype, device=colour.device)
    return share * eye + (1 - share) * _grey(colour.dtype, colour.device)


def _grey(dtype: torch.dtype, device: torch.device) -> Tensor:
    """(3, 3): luma in every channel."""
    return _constant(LUMA * 3, dtype, device)


_CONSTANTS: dict[tuple[Any, ...], Tensor] = {}


def _constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """(3, 3), copied to a device once: a copy from ordinary memory waits for the GPU."""
    if torch.compiler.is_compiling():
        return torch.tensor(values, dtype=dtype, device=device).view(3, 3)
    place = (values, dtype, device)
    if place not in _CONSTANTS:
        _CONSTANTS[place] = torch.tensor(values, dtype=dtype, device=device).view(3, 3)
    return _CONSTANTS[place]
