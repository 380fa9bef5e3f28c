"""Color profiles (ICC) of images: conversion to sRGB."""

import functools
import io

from PIL import Image, ImageCms


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert an image in CMYK, L or RGB to RGB with the colors of sRGB, and one in RGBA to RGBA.

    A profile that is damaged, or for other channels, is ignored.
    """
    if image.mode == "RGBA":
        converted = to_srgb(image.convert("RGB"), profile)
        converted.putalpha(image.getchannel("A"))
        return converted
    transform = _srgb_transform(profile, image.mode)
    if transform is None:
        return image
    return ImageCms.applyTransform(image, transform)


@functools.lru_cache(maxsize=64)
def _srgb_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the conversion; None if there is nothing to convert, or if the profile cannot be used."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(source).lower():
            return None
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
