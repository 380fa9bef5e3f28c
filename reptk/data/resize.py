"""From a picture of any shape to a square of one size: cropped, padded or squashed.

A picture is first resized with its proportions, so that its shorter side has the size of the square. Of a very long one the
middle is used, up to a length of `max_aspect_ratio` times the shorter side. How it then becomes square is decided when it is
used, which lets a cache serve training and evaluation with the same pixels.
"""

from math import floor, inf
from typing import Literal, NamedTuple

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from reptk.core.images import BORDER_COLOR

Resize = Literal["crop", "pad", "squash"]
"""What becomes of a picture that is not square: its center square, the whole picture with a border, or the whole picture with
other proportions. `crop_mode` of timm calls them center, border and squash."""

Interpolation = Literal["bilinear", "bicubic"]
"""How pictures are resized, in either case with antialiasing."""

Pixels = NDArray[np.uint8]
"""(height, width, 3) in RGB."""

MAX_ASPECT_RATIO = 2.0
"""Longer side over shorter side, at most, of what training and evaluation see of a picture."""

EVALUATION_CROP = 0.875
"""Share of the shorter side that evaluation keeps of a photograph, as is usual for ImageNet."""

_PILLOW_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class Preprocessing(NamedTuple):
    """What evaluation and embedding do with an image file.

    Attributes:
        crop: share of the side that is kept: files are resized to `size / crop` pixels and cropped to `size`.
        resize: what becomes of a picture that is not square.
        interpolation: of the resize, which is antialiased.
    """

    crop: float = EVALUATION_CROP
    resize: Resize = "crop"
    interpolation: Interpolation = "bilinear"

    @property
    def max_aspect_ratio(self) -> float:
        """What is used of a long picture when it is embedded: as in training where it is cropped, otherwise all of it."""
        if self.resize == "crop":
            return MAX_ASPECT_RATIO
        return inf

    def decode_px(self, size: int) -> int:
        """Return the side in pixels to which files are decoded for an input of `size` pixels, rounded as in timm."""
        # Divided in floating point: 224 / 0.875 must not become 255.
        return floor(size / self.crop + 1e-6)

    def replace_set(
        self, crop: float | None, resize: Resize | None, interpolation: Interpolation | None
    ) -> "Preprocessing":
        """Return the same with those arguments that are not None; another `resize` than "crop" keeps whole pictures."""
        chosen = self
        if resize is not None and resize != self.resize:
            chosen = chosen._replace(resize=resize)
            if resize != "crop":
                chosen = chosen._replace(crop=1.0)
        if crop is not None:
            chosen = chosen._replace(crop=crop)
        if interpolation is not None:
            chosen = chosen._replace(interpolation=interpolation)
        return chosen


DEFAULT_PREPROCESSING = Preprocessing()
WHOLE_SQUARES = Preprocessing(crop=1.0)
"""Of images that are squares already."""

_MARGIN_CANDIDATES = 4


class _Middle(NamedTuple):
    """The middle part of a picture: its center square and margins of one size before and behind it.

    Attributes:
        side: of the center square, in pixels of the picture.
        margin: in pixels of the picture.
        out_margin: in pixels of the result.
        is_wide: whether the margins are left and right, not above and below.
    """

    side: int
    margin: float
    out_margin: int
    is_wide: bool


def resize_picture(image: Image.Image, size: int, interpolation: Interpolation, max_aspect_ratio: float) -> Pixels:
    """Resize the shorter side of an RGB image to `size` with Pillow, up or down.

    The longer side has `size` plus an even number of pixels, and the scale of both sides is the same to the last digit: the
    center square does not depend on what is around it.

    Returns:
        (height, width, 3), the longer side at most `max_aspect_ratio` times `size`.
    """
    middle = _middle(image.height, image.width, size, max_aspect_ratio)
    out_length = size + 2 * middle.out_margin
    if middle.is_wide:
        start = (image.width - middle.side) / 2 - middle.margin
        box = (start, 0, start + middle.side + 2 * middle.margin, image.height)
        out_size = (out_length, size)
    else:
        start = (image.height - middle.side) / 2 - middle.margin
        box = (0, start, image.width, start + middle.side + 2 * middle.margin)
        out_size = (size, out_length)
    return np.asarray(image.resize(out_size, _PILLOW_FILTERS[interpolation], box=box))


def resize_array(pixels: Pixels, size: int, interpolation: Interpolation, max_aspect_ratio: float) -> Pixels:
    """Do what `resize_picture` does with torch, which is several times as fast.

    Margins are rounded to whole pixels of the picture, which shifts their outermost pixels by a fraction of a pixel.
    """
    height, width = pixels.shape[:2]
    middle = _middle(height, width, size, max_aspect_ratio)
    margin = round(middle.margin)
    out_length = size + 2 * middle.out_margin
    if middle.is_wide:
        start = (width - middle.side) // 2 - margin
        part = pixels[:, start : start + middle.side + 2 * margin]
        return _interpolate(part, size, out_length, interpolation)
    start = (height - middle.side) // 2 - margin
    part = pixels[start : start + middle.side + 2 * margin]
    return _interpolate(part, out_length, size, interpolation)


def write_square(picture: Pixels, out: Pixels, resize: Resize, interpolation: Interpolation = "bilinear") -> None:
    """Write a picture whose shorter side is that of `out` (size, size, 3) into it."""
    size = len(out)
    height, width = picture.shape[:2]
    if height == width or resize == "crop":
        top, left = (height - size) // 2, (width - size) // 2
        np.copyto(out, picture[top : top + size, left : left + size])
    elif resize == "squash":
        np.copyto(out, _interpolate(picture, size, size, interpolation))
    else:
        # At least one pixel of a line that is thousands of times as long as it is wide.
        fitted_height = max(1, round(size * height / max(height, width)))
        fitted_width = max(1, round(size * width / max(height, width)))
        top, left = (size - fitted_height) // 2, (size - fitted_width) // 2
        out[:] = BORDER_COLOR
        fitted = _interpolate(picture, fitted_height, fitted_width, interpolation)
        out[top : top + fitted_height, left : left + fitted_width] = fitted


def _middle(height: int, width: int, size: int, max_aspect_ratio: float) -> _Middle:
    side, longer = min(height, width), max(height, width)
    scale = side / size
    longest = min(longer, max_aspect_ratio * side)
    out_margin = floor((longest - side) // 2 / scale + 1e-9)
    # Of the largest margins, the one that is nearest to whole pixels of the picture, since torch resizes whole pixels.
    candidates = range(out_margin, max(-1, out_margin - _MARGIN_CANDIDATES), -1)
    out_margin = min(candidates, key=lambda candidate: abs(candidate * scale - round(candidate * scale)))
    return _Middle(side, out_margin * scale, out_margin, is_wide=width >= height)


def _interpolate(pixels: Pixels, height: int, width: int, interpolation: Interpolation) -> Pixels:
    if pixels.shape[:2] == (height, width):
        return pixels
    # The batch axis comes first: with the strides of rearranging a single image, torch would not recognize channels last and
    # take three times as long.
    batch = rearrange(torch.from_numpy(np.ascontiguousarray(pixels))[None], "b h w c -> b c h w")
    resized = functional.interpolate(batch, (height, width), mode=interpolation, antialias=True)
    return rearrange(resized, "b c h w -> b h w c")[0].numpy()
