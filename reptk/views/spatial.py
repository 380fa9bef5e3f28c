"""Crop, resize and flip as one linear map of rows and one of columns; Gaussian blur likewise.

out = A_y x A_x^T for every channel, where a row of A_y holds the weights with which the input's rows make one output row:
torch's antialiased bilinear interpolation. Here as products for a whole batch, without a loop or a wait for a GPU;
`kernels` does the same image by image, without the zeros.
"""

import torch
from torch import Tensor

from reptk.views.room import Room


def products(images: Tensor, down: Tensor, across: Tensor, room: Room) -> Tensor:
    """down (n, h, H) @ images (n, 3, H, W) @ across (n, w, W)^T -> (n, 3, h, w).

    On CUDA float32 goes through its tensor cores as float16, whose 11 bits hold values of 0..1 to a sixteenth of a grey level.
    """
    if images.is_cuda and images.dtype == torch.float32:
        return products(images.half(), down.half(), across.half(), room).float()
    count, channels, height, width = images.shape
    narrow = across.shape[1]
    narrowed = room("narrowed", (count, channels * height, narrow), images)
    narrowed = torch.bmm(images.reshape(count, channels * height, width), across.transpose(1, 2), out=narrowed)
    # One map a channel: a product with a map that three channels share would copy it, too.
    maps = down[:, None].expand(-1, channels, -1, -1).reshape(-1, *down.shape[1:])
    made = room("made", (count * channels, down.shape[1], narrow), images)
    made = torch.bmm(maps, narrowed.view(-1, height, narrow), out=made)
    return made.view(count, channels, down.shape[1], narrow)


def places(start: Tensor, length: Tensor, size: int, flip: Tensor) -> Tensor:
    """(n, a, size): where the pixels of the parts [start, start + length), resized to `size`, lie in the input.

    Args:
        start, length, flip: (n, a), for each of a axes.
    """
    steps = torch.arange(size, dtype=start.dtype, device=start.device) + 0.5
    steps = torch.where(flip[..., None], size - steps, steps)
    return start[..., None] + steps * (length / size)[..., None]


def weights(centres: Tensor, start: Tensor, length: Tensor, extent: int, made: Tensor | None = None) -> Tensor:
    """(n, a, size, extent): what each pixel of the input weighs in each of the output, whose centres `places` gave.

    A triangle as wide as an output pixel, or as an input pixel where that is the larger, cut off at the part's edge.
    """
    pixels = torch.arange(extent, dtype=centres.dtype, device=centres.device) + 0.5
    slopes = -centres.shape[-1] / length.clamp_min(centres.shape[-1])[..., None, None]
    ends = start[..., None], (start + length)[..., None]
    inside = ((pixels > ends[0]) & (pixels < ends[1]))[..., None, :]
    made = torch.sub(pixels, centres[..., None], out=made).abs_().mul_(slopes).add_(1).clamp_(0).mul_(inside)
    return made.div_(made.sum(-1, keepdim=True).clamp_min_(1e-3))


def enlarging_weights(
    centres: Tensor, start: Tensor, length: Tensor, extent: int, made: Tensor | None = None
) -> Tensor:
    """`weights` of parts that lie in the image and are no longer than `size`: two pixels weigh in, and at the edge one."""
    pixels = torch.arange(extent, dtype=centres.dtype, device=centres.device) + 0.5
    first, last = (start + 0.5)[..., None], (start + length - 0.5)[..., None]
    centres = centres.maximum(first).minimum(last)[..., None]
    apart = torch.sub(pixels, centres, out=made).abs_()
    return torch.sub(1, apart, out=made).clamp_(0)


def gaussians(sigma: Tensor, kernel: int) -> Tensor:
    """(n,) sigma in pixels -> (n, kernel) weights that add up to 1; sigma 0 leaves the image as it is."""
    offsets = torch.arange(kernel, dtype=sigma.dtype, device=sigma.device) - kernel // 2
    made = (-0.5 * (offsets / sigma.clamp_min(1e-3)[:, None]) ** 2).exp()
    return made / made.sum(1, keepdim=True)


def blur(images: Tensor, sigma: Tensor, kernel: tuple[int, int], room: Room) -> Tensor:
    """(n, 3, H, W), sigma (n,) -> blurred (n, 3, H, W), reflected at the borders."""
    sigma = sigma.to(images.dtype)
    down, across = (
        _band(gaussians(sigma, side), length) for side, length in zip(kernel, images.shape[-2:], strict=True)
    )
    return products(images, down, across, room)


def _band(taps: Tensor, extent: int) -> Tensor:
    """(n, kernel) -> (n, extent, extent): convolution with reflected borders as a matrix."""
    kernel = taps.shape[1]
    places = torch.arange(extent, device=taps.device)
    offsets = torch.arange(kernel, device=taps.device) - kernel // 2
    sources = (places + offsets[:, None]).abs()
    sources = (extent - 1) - ((extent - 1) - sources).abs()
    hits = (sources[:, :, None] == places).to(taps.dtype)
    return (taps @ hits.view(kernel, -1)).view(len(taps), extent, extent)
