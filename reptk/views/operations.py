"""The operations that reptk runs itself: what each image draws for them, and what that means for its pixels.

An operation turns uniform numbers u in [0, 1) into a table of parameters, one row for each image. Everything that follows
from the parameters without looking at pixels is defined here as well: the weights of the resize, the color matrix, the weights
of the blur. The backends only execute it, so they all make the same views. Crops are in `crops`.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

Shape = tuple[int, int]
"""Height and width in pixels."""
Range = tuple[float, float]

NEUTRAL_FACTORS = (1.0, 1.0, 1.0, 0.0)
"""Factors of brightness, contrast, saturation and hue that change nothing."""
LUMA = (0.299, 0.587, 0.114)
"""The weights of ITU-R BT.601, as in kornia; torchvision's first is 0.2989, so that its three add up to 0.9999."""

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
# From RGB to luma and the two chroma axes of YIQ, whose rows add up to 0. A shift of the hue rotates the chroma axes.
_YIQ = torch.tensor([LUMA, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)], dtype=torch.float64)
_QUARTER_TURN = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
CHROMA_TURN = tuple((torch.linalg.inv(_YIQ)[:, 1:] @ _QUARTER_TURN @ _YIQ[1:]).flatten().tolist())
"""The 3 x 3 matrix, row by row, that takes the chroma of an RGB pixel, turned by a quarter, and drops its luma."""


class ViewOperation(Protocol):
    """One operation. `num_uniforms` is how many uniform numbers it needs for each image.

    An operation that `crops_full_images` has a third argument of `sample`, `aspect_ratios` (n,): width / height that images
    had before they were squashed into squares, or None if they have their proportions.
    """

    num_uniforms: ClassVar[int]
    crops_full_images: ClassVar[bool] = False

    def sample(self, u: Tensor, shape: Shape) -> Tensor:
        """Return the parameters (n, k) of n images of this height and width, from u (n, num_uniforms) in [0, 1)."""
        ...

    def is_applied(self, params: Tensor) -> Tensor:
        """(n,) bool: which images the operation may change."""
        return torch.ones(len(params), dtype=torch.bool, device=params.device)

    def output_shape(self, shape: Shape) -> Shape:
        """Return the size of the images it makes of images of this size."""
        return shape


class ColorGains(NamedTuple):
    """A color operation where nothing is cut to 0..1, (n,) each.

    The luma of every pixel is multiplied by `luma`, its chroma by `chroma` and turned by `turns`, the image's mean luma
    multiplied by `mean`. Such operations commute.
    """

    luma: Tensor
    chroma: Tensor
    mean: Tensor
    turns: Tensor


class ColorOperation(ViewOperation, Protocol):
    """An operation that treats all pixels of an image alike."""

    def gains(self, params: Tensor) -> ColorGains:
        """Return the operation as gains, for its parameters (n, k)."""
        ...

    def color_steps(self, params: Tensor) -> Tensor:
        """(n, k) parameters -> (n, S, 4) steps, in the order in which they are applied; in the dtype of `params`.

        A step (color, luma, mean, turns) makes of a pixel x

            color * x + luma * luma(x) + mean * mean luma of the image, its hue shifted by so many turns.
        """
        ...


@dataclass(frozen=True)
class RandomFlip(ViewOperation):
    """A mirror image: left and right exchanged, or top and bottom. Parameters: (n, 1), 1 for a flip."""

    num_uniforms: ClassVar[int] = 1
    p: float = 0.5
    is_vertical: bool = False

    def sample(self, u: Tensor, shape: Shape) -> Tensor:
        return (u < self.p).float()

    def is_applied(self, params: Tensor) -> Tensor:
        return params[:, 0] > 0


@dataclass(frozen=True)
class ColorJitter(ColorOperation):
    """Brightness, contrast, saturation and hue, in an order that each image draws.

    Parameters: (n, 8), the factors of the four, that of hue in turns, and neutral ones where an image is not jittered; then
    which of the four is applied first, second, third and last.
    """

    num_uniforms: ClassVar[int] = 9
    brightness: Range
    contrast: Range
    saturation: Range
    hue: Range
    p: float = 1.0

    def sample(self, u: Tensor, shape: Shape) -> Tensor:
        is_jittered = u[:, 0] < self.p
        ranges = (self.brightness, self.contrast, self.saturation, self.hue)
        factors = []
        for column, (factor_range, neutral) in enumerate(zip(ranges, NEUTRAL_FACTORS, strict=True), start=1):
            factors.append(torch.where(is_jittered, between(u[:, column], *factor_range), neutral))
        # Sorting independent uniform numbers gives a uniform permutation.
        order = u[:, 5:].argsort(1).float()
        return torch.cat([torch.stack(factors, dim=1), order], dim=1)

    def is_applied(self, params: Tensor) -> Tensor:
        # The order in the last four columns is drawn in any case, and changes nothing by itself.
        return (params[:, :4] != params.new_tensor(NEUTRAL_FACTORS)).any(1)

    def gains(self, params: Tensor) -> ColorGains:
        brightness, contrast, saturation, hue = params[:, :4].unbind(1)
        luma = brightness * contrast
        # Contrast scales the distance from the mean luma, and so keeps the mean.
        return ColorGains(luma, luma * saturation, brightness, hue)

    def color_steps(self, params: Tensor) -> Tensor:
        brightness, contrast, saturation, hue = params[:, :4].unbind(1)
        zero, one = torch.zeros_like(hue), torch.ones_like(hue)
        columns = [
            brightness, zero, zero, zero,
            contrast, zero, 1 - contrast, zero,
            saturation, 1 - saturation, zero, zero,
            one, zero, zero, hue,
        ]  # fmt: skip
        steps = torch.stack(columns, dim=1).view(-1, 4, 4)
        order = params[:, 4:].long()
        return steps.gather(1, order[:, :, None].expand(-1, -1, 4))


@dataclass(frozen=True)
class RandomGrayscale(ColorOperation):
    """The luma in all three channels. Parameters: (n, 1), 1 for gray."""

    num_uniforms: ClassVar[int] = 1
    p: float = 0.1

    def sample(self, u: Tensor, shape: Shape) -> Tensor:
        return (u < self.p).float()

    def is_applied(self, params: Tensor) -> Tensor:
        return params[:, 0] > 0

    def gains(self, params: Tensor) -> ColorGains:
        is_gray = params[:, 0]
        one = torch.ones_like(is_gray)
        return ColorGains(one, 1 - is_gray, one, torch.zeros_like(is_gray))

    def color_steps(self, params: Tensor) -> Tensor:
        zero = torch.zeros_like(params)
        return torch.stack([1 - params, params, zero, zero], dim=2)


@dataclass(frozen=True)
class RandomGaussianBlur(ViewOperation):
    """A Gaussian of `kernel` pixels, reflected at the borders. Parameters: (n, 1), sigma in pixels, 0 for no blur."""

    num_uniforms: ClassVar[int] = 2
    kernel: Shape
    sigma: Range
    p: float = 0.5

    def sample(self, u: Tensor, shape: Shape) -> Tensor:
        if self.kernel[0] // 2 >= shape[0] or self.kernel[1] // 2 >= shape[1]:
            raise ValueError(
                f"RandomGaussianBlur with kernel_size {list(self.kernel)} needs larger images than {shape[1]} x {shape[0]} px"
            )
        # A sigma of 0 marks an image that is not blurred.
        return between(u[:, 1:], *self.sigma) * (u[:, :1] < self.p)

    def is_applied(self, params: Tensor) -> Tensor:
        return params[:, 0] > 0


def between(u: Tensor, low: float, high: float) -> Tensor:
    return low + u * (high - low)


# Geometry: a crop, a resize and flips map every output pixel to a place in the input, on each axis by itself.


def source_centers(start: Tensor, length: Tensor, size: int, is_flipped: Tensor) -> Tensor:
    """Return where in the input the centers of the output pixels lie, (n, axes, size).

    Args:
        start, length: (n, axes), the part of the input that is resized to `size` pixels.
        is_flipped: (n, axes), whether the output is mirrored.
    """
    steps = torch.arange(size, dtype=start.dtype, device=start.device) + 0.5
    # A flip is free: it only changes which place each output pixel comes from.
    steps = torch.where(is_flipped[..., None], size - steps, steps)
    return start[..., None] + steps * (length / size)[..., None]


def resize_weights(centers: Tensor, start: Tensor, length: Tensor, extent: int, out: Tensor | None = None) -> Tensor:
    """Return the weights of the input pixels in each output pixel, (n, axes, size, extent): antialiased bilinear.

    A triangle as wide as two output pixels, or two input pixels where those are larger, cut off at the edges of the part.

    Args:
        centers: (n, axes, size), of `source_centers`.
        start, length: (n, axes), the part that is resized.
        extent: length of the input in pixels.
    """
    size = centers.shape[-1]
    pixels = torch.arange(extent, dtype=centers.dtype, device=centers.device) + 0.5
    # The triangle falls from 1 at the center of the output pixel to 0 at its neighbor's, or at least one input pixel away.
    slopes = -size / length.clamp_min(size)[..., None, None]
    is_inside = ((pixels > start[..., None]) & (pixels < (start + length)[..., None]))[..., None, :]
    weights = torch.sub(pixels, centers[..., None], out=out).abs_().mul_(slopes).add_(1).clamp_(0).mul_(is_inside)
    # Parts may lie in the padding, where no pixel has a weight.
    return weights.div_(weights.sum(-1, keepdim=True).clamp_min_(1e-3))


def enlarging_weights(centers: Tensor, start: Tensor, length: Tensor, extent: int, out: Tensor | None = None) -> Tensor:
    """`resize_weights` of parts inside the image that are no longer than `size`: of two pixels, at the edge of one."""
    pixels = torch.arange(extent, dtype=centers.dtype, device=centers.device) + 0.5
    first, last = (start + 0.5)[..., None], (start + length - 0.5)[..., None]
    centers = centers.maximum(first).minimum(last)[..., None]
    distances = torch.sub(pixels, centers, out=out).abs_()
    return torch.sub(1, distances, out=out).clamp_(0)


def gaussian(offsets: Tensor, sigma: Tensor) -> Tensor:
    """Return the Gaussian of each image at these distances, 1 at distance 0: (k,) and (n,), in pixels -> (n, k)."""
    # Images that drew no blur have sigma 0; the bound leaves them the weights 1, 0, 0, ...
    return (-0.5 * (offsets / sigma.clamp_min(1e-3)[:, None]) ** 2).exp()


# Color


def color_matrices(gains: Sequence[ColorGains]) -> tuple[Tensor, Tensor]:
    """Return color operations as a linear map: out = M x + weights . mean(x), the same in all channels of out.

    Values are cut to 0..1 once, after the last operation, and the hue is shifted by a rotation of the chroma plane of YIQ,
    which keeps the luma. As the weights of the luma add up to 1, the operations commute.

    Returns:
        M (n, 3, 3) and the weights (n, 3), in the dtype of the gains. M of neutral gains is exactly the identity.
    """
    luma, chroma, mean, turns = gains[0]
    for other in gains[1:]:
        luma, chroma, mean, turns = luma * other.luma, chroma * other.chroma, mean * other.mean, turns + other.turns
    angle = turns * (2 * math.pi)
    # A rotation by the angle: cos times the chroma plus sin times the chroma a quarter turn further.
    in_phase, in_quadrature = chroma * angle.cos(), chroma * angle.sin()
    # M = in_phase * identity + (luma - in_phase) * gray + in_quadrature * quarter turn of the chroma
    shares = torch.stack([in_phase, luma - in_phase, in_quadrature], dim=1)
    basis = constant(IDENTITY + LUMA * 3 + CHROMA_TURN, (3, 9), shares.dtype, shares.device)
    matrix = (shares @ basis).view(-1, 3, 3)
    mean_weights = (mean - luma)[:, None] * constant(LUMA, (1, 3), shares.dtype, shares.device)
    return matrix, mean_weights


def mix_with_gray(color: Tensor, luma: Tensor) -> Tensor:
    """Return the matrices (n, 3, 3) of color * x + luma * luma(x), for (n,) of each."""
    eye = torch.eye(3, dtype=color.dtype, device=color.device)
    return color[:, None, None] * eye + luma[:, None, None] * gray_matrix(color.dtype, color.device)


def gray_matrix(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the (3, 3) matrix that puts the luma into every channel."""
    return constant(LUMA * 3, (3, 3), dtype, device)


def luma(images: Tensor) -> Tensor:
    """(..., 3, H, W) -> (..., 1, H, W)."""
    return sum(weight * images.narrow(-3, channel, 1) for channel, weight in enumerate(LUMA))


def constant(values: tuple[float, ...], shape: Shape, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a constant on a device, to which it is copied once, because such a copy synchronises with a GPU."""
    if torch.compiler.is_compiling():
        return torch.tensor(values, dtype=dtype, device=device).view(shape)
    return _cached_constant(values, shape, dtype, device)


@functools.cache
def _cached_constant(values: tuple[float, ...], shape: Shape, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device).view(shape)
