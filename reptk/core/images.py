"""Conversion of images to floats in 0..1, and the resize and center crop of evaluation."""

import torch
from torch import Tensor
from torch.nn import functional


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


def resize_center_crop(images: Tensor, size: int, crop: float = 1.0) -> Tensor:
    """Resize the shorter side to size / crop pixels (antialiased bilinear), then crop the center.

    Args:
        images: (B, 3, H, W), uint8 or floats in 0..1.
        size: side of the result in pixels.
        crop: share of the shorter side that is retained; 0.875 is common for ImageNet, and 1 retains all of it.

    Returns:
        (B, 3, size, size) float in 0..1.
    """
    images = to_float(images)
    height, width = images.shape[-2:]
    shorter = max(size, round(size / crop))
    if min(height, width) != shorter:
        scale = shorter / min(height, width)
        target = (max(shorter, round(height * scale)), max(shorter, round(width * scale)))
        images = functional.interpolate(images, target, mode="bilinear", antialias=True, align_corners=False)
        images = images.clamp(0, 1)  # rounding may leave the range by a bit
    top = (images.shape[-2] - size) // 2
    left = (images.shape[-1] - size) // 2
    return images[..., top : top + size, left : left + size]
