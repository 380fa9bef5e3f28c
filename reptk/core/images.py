"""Conversion of images to floats in 0..1, and the resize and center crop of evaluation."""

from math import floor
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

BORDER_COLOR = (124, 116, 104)
"""The mean color of ImageNet, which most backbones normalize to 0; in 0..255."""


MAX_RESIZED_ASPECT_RATIO = 16
"""Of longer images, only the middle is resized to be cropped, which bounds the time and memory for a line of pixels."""


def to_float(images: Tensor) -> Tensor:
    """Convert uint8 images in 0..255 to float32 in 0..1; floats are returned as they are.

    Raises:
        ValueError: floats outside 0..1 (0..255 floats are the usual slip), or any other type.
    """
    if images.dtype == torch.uint8:
        return scale_to_unit(images)
    if not images.is_floating_point():
        raise ValueError(f"images must be uint8 in 0..255 or floats in 0..1, got {images.dtype}")
    # The tolerance is for rounding, e.g. of images that were resized.
    if images.numel() and (images.amin() < -1e-3 or images.amax() > 1 + 1e-3):
        raise ValueError(f"float images must lie in 0..1, got {images.amin():.3g} to {images.amax():.3g}")
    return images


def scale_to_unit(images: Tensor) -> Tensor:
    """Do what `to_float` does without checking the values, which would synchronize with a GPU."""
    if images.dtype == torch.uint8:
        return images.float() / 255
    return images


def float_type(images: Tensor) -> torch.dtype:
    """Return the dtype of what `scale_to_unit` returns."""
    if images.is_floating_point():
        return images.dtype
    return torch.float32


def resized_size(height: int, width: int, size: int, resize: Literal["crop", "pad", "squash"]) -> tuple[int, int]:
    """Return height and width to which a picture is resized for a square of `size` pixels.

    Args:
        height, width: of the picture.
        size: side of the square.
        resize: "crop": the shorter side becomes `size`; "pad": the longer one; "squash": both.
    """
    if resize == "squash":
        return size, size
    longer = max(height, width)
    if resize == "pad":
        return max(1, round(size * height / longer)), max(1, round(size * width / longer))
    # Rounded down, as in torchvision.
    longer_px = int(size * longer / min(height, width))
    if height <= width:
        return size, longer_px
    return longer_px, size


def resize_center_crop(
    images: Tensor, size: int, crop: float = 1.0, interpolation: Literal["bilinear", "bicubic"] = "bilinear"
) -> Tensor:
    """Resize the shorter side to size / crop pixels (antialiased), then crop the center.

    Args:
        images: (B, 3, H, W), uint8 or floats in 0..1.
        size: side of the result in pixels.
        crop: share of the shorter side that is retained; 0.875 is common for ImageNet, and 1 retains all of it.
        interpolation: of the resize.

    Returns:
        (B, 3, size, size) float in 0..1.
    """
    images = to_float(_middle(images))
    height, width = images.shape[-2:]
    # Rounded down, as in timm; 224 / 0.875 must not become 255.
    shorter = max(size, floor(size / crop + 1e-6))
    if min(height, width) != shorter:
        target = resized_size(height, width, shorter, "crop")
        images = functional.interpolate(images, target, mode=interpolation, antialias=True, align_corners=False)
        images = images.clamp(0, 1)  # rounding may leave the range by a bit
    # Odd margins as in torchvision's CenterCrop.
    top = round((images.shape[-2] - size) / 2)
    left = round((images.shape[-1] - size) / 2)
    return images[..., top : top + size, left : left + size]


def _middle(images: Tensor) -> Tensor:
    """Return the middle of images that are so long that resizing all of it would take much memory for nothing."""
    height, width = images.shape[-2:]
    longest = MAX_RESIZED_ASPECT_RATIO * min(height, width)
    top, left = max(0, (height - longest) // 2), max(0, (width - longest) // 2)
    return images[..., top : height - top, left : width - left]


def resize_to_square(
    images: Tensor,
    size: int,
    crop: float = 1.0,
    resize: Literal["crop", "pad", "squash"] = "crop",
    interpolation: Literal["bilinear", "bicubic"] = "bilinear",
    border_color: tuple[int, int, int] = BORDER_COLOR,
) -> Tensor:
    """Resize images to squares of size / crop pixels (antialiased), then crop the center.

    Args:
        images: (B, 3, H, W), uint8 or floats in 0..1.
        size: side of the result in pixels.
        crop: share of the side that is retained.
        resize: what becomes of images that are not square: their center squares, the whole with a border, or squashed.
        interpolation: of the resize.
        border_color: in 0..255.

    Returns:
        (B, 3, size, size) float in 0..1.
    """
    height, width = images.shape[-2:]
    if height == width or resize == "crop":
        return resize_center_crop(images, size, crop, interpolation)
    images = to_float(images)
    side = max(size, floor(size / crop + 1e-6))
    fitted = resized_size(height, width, side, resize)
    resized = functional.interpolate(images, fitted, mode=interpolation, antialias=True, align_corners=False)
    square = torch.tensor(border_color, device=images.device, dtype=images.dtype).view(1, 3, 1, 1) / 255
    square = square.repeat(len(images), 1, side, side)
    top, left = (side - fitted[0]) // 2, (side - fitted[1]) // 2
    square[..., top : top + fitted[0], left : left + fitted[1]] = resized.clamp(0, 1)
    return resize_center_crop(square, size, crop, interpolation)
