"""From a picture of any shape to a square of one size: cropped, padded or squashed.

A picture is resized with its proportions, so that its shorter side has the size of the square, exactly as torchvision's
`Resize` does it. How it then becomes square is decided when it is used, which lets a cache serve training and evaluation with
the same pixels. Where nothing is cached, pictures can also be padded or squashed in one step.
"""

from collections.abc import Mapping
from math import floor
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from reptk.core.images import BORDER_COLOR, MAX_RESIZED_ASPECT_RATIO, resized_size

ResizeMode = Literal["crop", "pad", "squash"]
"""What becomes of a picture that is not square: its center square, the whole picture with a border, or the whole picture with
other proportions. `crop_mode` of timm calls them center, border and squash."""

Interpolation = Literal["bilinear", "bicubic"]
"""How pictures are resized, in either case with antialiasing."""

Pixels = NDArray[np.uint8]
"""(height, width, 3) in RGB."""

Color = tuple[int, int, int]
"""Red, green and blue, in 0..255."""

MAX_ASPECT_RATIO = 2.0
"""Longer side over shorter side, at most, of a picture with its proportions: of longer ones, the middle is used.

Where as much is cut off on both sides, it may have a pixel more.
"""

PAGE_COLOR = (247, 247, 247)
"""Color of the border of pictures that people look at, near that of the pages."""

EVALUATION_CROP = 0.875
"""Share of the shorter side that evaluation keeps of a photograph, as is usual for ImageNet."""

_PILLOW_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class SquareOptions(NamedTuple):
    """How the picture in a file becomes a square.

    Attributes:
        resize: what becomes of a picture that is not square.
        interpolation: of the resize, which is antialiased.
        reduce_jpeg: see `Preprocessing`.
        crop_px: side of the center that will be cut out of the square. Odd margins are then rounded as if the center were cut
            out of the picture.
        border_color: of a picture that is padded.
    """

    resize: ResizeMode = "crop"
    interpolation: Interpolation = "bilinear"
    reduce_jpeg: bool = True
    crop_px: int | None = None
    border_color: Color = BORDER_COLOR

    def with_resize(self, resize: ResizeMode, border_color: Color | None = None) -> "SquareOptions":
        """Return the same with another `resize`, and another color if it is not None."""
        if border_color is None:
            border_color = self.border_color
        return self._replace(resize=resize, border_color=border_color)


DEFAULT_SQUARE = SquareOptions()


class Preprocessing(NamedTuple):
    """What evaluation and embedding do with an image file.

    Attributes:
        crop: share of the side that is kept: files are resized to `size / crop` pixels and cropped to `size`.
        resize: what becomes of a picture that is not square.
        interpolation: of the resize, which is antialiased.
        reduce_jpeg: whether JPEG files are decoded at the smallest eighth, quarter or half that is not smaller than the result,
            which is several times as fast for large photographs. Features differ by a cosine of up to 0.02.
    """

    crop: float = EVALUATION_CROP
    resize: ResizeMode = "crop"
    interpolation: Interpolation = "bilinear"
    reduce_jpeg: bool = True

    def decode_px(self, size: int) -> int:
        """Return the side in pixels to which files are decoded for an input of `size` pixels, rounded as in timm."""
        # 224 / 0.875 must not become 255.
        return floor(size / self.crop + 1e-6)

    def square_options(self, size: int, border_color: Color) -> SquareOptions:
        """Return how files are decoded whose centers of `size` pixels will be encoded."""
        return SquareOptions(self.resize, self.interpolation, self.reduce_jpeg, size, border_color)

    def replace_set(self, **fields: float | str | bool | None) -> "Preprocessing":
        """Return the same with those fields that are not None; another `resize` than "crop" keeps whole pictures."""
        chosen = {name: value for name, value in fields.items() if value is not None}
        if chosen.get("resize", self.resize) not in ("crop", self.resize):
            chosen.setdefault("crop", 1.0)
        return self._replace(**chosen)

    def updated(self, table: Mapping[str, Any]) -> "Preprocessing":
        """Return the same with what the table of a data set sets."""
        return self.replace_set(**{name: table.get(name) for name in self._fields})


DEFAULT_PREPROCESSING = Preprocessing()
WHOLE_SQUARES = Preprocessing(crop=1.0)
"""Of images that are squares already."""


def resize_picture(image: Image.Image, size: int, resize: ResizeMode, interpolation: Interpolation) -> Pixels:
    """Resize an RGB image with Pillow.

    Args:
        image: of any size.
        size: side of the square that it will become.
        resize: "crop": the shorter side becomes `size`, up or down, and the picture is at most twice as long; "pad": the longer
            side becomes `size`; "squash": both do.
        interpolation: of the resize.
    """
    box = _middle(image.height, image.width, resize)
    height, width = resized_size(box[3] - box[1], box[2] - box[0], size, resize)
    resized = image.resize((width, height), _PILLOW_FILTERS[interpolation], box=box)
    return _cut(np.array(resized), size, resize)


def resize_array(pixels: Pixels, size: int, resize: ResizeMode, interpolation: Interpolation) -> Pixels:
    """Do what `resize_picture` does with torch, which is several times as fast."""
    left, top, right, bottom = _middle(*pixels.shape[:2], resize)
    height, width = resized_size(bottom - top, right - left, size, resize)
    return _cut(_interpolate(pixels[top:bottom, left:right], height, width, interpolation), size, resize)


def write_square(picture: Pixels, out: Pixels, square: SquareOptions = DEFAULT_SQUARE) -> None:
    """Write a picture from `resize_picture` as a square.

    Args:
        picture: (height, width, 3); if it was resized for "crop", it may become any kind of square.
        out: (size, size, 3).
        square: how; the interpolation is that of a resize that is left to do.
    """
    size = len(out)
    height, width = picture.shape[:2]
    if square.resize == "crop":
        top, left = _square_start(height, size, square.crop_px), _square_start(width, size, square.crop_px)
        np.copyto(out, picture[top : top + size, left : left + size])
        return
    picture = _interpolate(picture, *resized_size(height, width, size, square.resize), square.interpolation)
    height, width = picture.shape[:2]
    if (height, width) != (size, size):
        out[:] = square.border_color
    top, left = (size - height) // 2, (size - width) // 2
    out[top : top + height, left : left + width] = picture


def _middle(height: int, width: int, resize: ResizeMode) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of the part of a picture that is resized."""
    if resize != "crop":
        return 0, 0, width, height
    cut_height = min(height, MAX_RESIZED_ASPECT_RATIO * width)
    cut_width = min(width, MAX_RESIZED_ASPECT_RATIO * height)
    top, left = (height - cut_height) // 2, (width - cut_width) // 2
    return left, top, left + cut_width, top + cut_height


def _cut(picture: Pixels, size: int, resize: ResizeMode) -> Pixels:
    """Return a resized picture, or its middle if it is longer than `MAX_ASPECT_RATIO` allows, if it will be cropped."""
    if resize != "crop":
        return picture
    height, width = picture.shape[:2]
    longest = int(MAX_ASPECT_RATIO * size)
    # As much on both sides, so that the center remains where it was.
    top, left = max(0, (height - longest) // 2), max(0, (width - longest) // 2)
    return picture[top : height - top, left : width - left]


def _square_start(length: int, size: int, crop_px: int | None) -> int:
    """Return where the center square begins; `round`, as torchvision's CenterCrop rounds."""
    if crop_px is None:
        return round((length - size) / 2)
    start_of_crop = round((length - crop_px) / 2)
    start_in_square = round((size - crop_px) / 2)
    return start_of_crop - start_in_square


def _interpolate(pixels: Pixels, height: int, width: int, interpolation: Interpolation) -> Pixels:
    if pixels.shape[:2] == (height, width):
        return pixels
    # The batch axis comes first: with the strides of permuting a single image, torch would not recognize channels last and take
    # three times as long. `permute` and not einops, which would take as long as the resize of a small image.
    batch = torch.from_numpy(np.ascontiguousarray(pixels))[None].permute(0, 3, 1, 2)
    resized = functional.interpolate(batch, (height, width), mode=interpolation, antialias=True)
    return resized.permute(0, 2, 3, 1)[0].numpy()
