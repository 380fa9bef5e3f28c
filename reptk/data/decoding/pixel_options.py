"""What the pixels of unusual images become in RGB: 16 bits, transparency, color profiles, many pixels."""

import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageColor

from reptk.data.decoding.color_profile import to_srgb

MAX_CAMERA_BITS = 14
"""Bits of cameras and scanners, at most, which are stored as 16."""

MAX_PIXELS = 250_000_000
"""Pixels of an image, at most, by default: more than the 200 megapixels of phones. They take up to 1 GB while it is decoded,
and with transparent pixels 2 GB."""

BAND_PIXELS = 1 << 22
"""Pixels that are put in front of a background at a time."""


@dataclass(frozen=True)
class PixelOptions:
    """What the pixels of unusual files become.

    Args:
        max_pixels: an image with more is refused.
        range: values of 16-bit images that become black and white, e.g. (0, 4095) for cameras with 12 bits.
        background: the color behind transparent pixels, as a name or `#rrggbb`.

    Raises:
        ValueError: `range` is empty, or `background` is no color.
    """

    max_pixels: int = MAX_PIXELS
    range: tuple[int, int] = (0, 65535)
    background: str = "white"

    def __post_init__(self) -> None:
        low, high = self.range
        if not 0 <= low < high <= 65535:
            raise ValueError(f"range must be two values from 0 to 65535, the lower first, got {list(self.range)}")
        try:
            ImageColor.getrgb(self.background)
        except ValueError as cause:
            raise ValueError(f"background must be the name of a color or #rrggbb, got {self.background!r}") from cause


DEFAULT_OPTIONS = PixelOptions()


def to_rgb(image: Image.Image, options: PixelOptions = DEFAULT_OPTIONS) -> Image.Image:
    """Convert an image of any mode to RGB with the colors of sRGB, as described for `decode`.

    Raises:
        ValueError: its pixels are floats, whose range is not known.
    """
    if image.mode == "F":
        raise ValueError("its pixels are floats of unknown range; convert it to 8 or 16 bits")
    if image.mode.startswith("I;16") or image.mode == "I":
        return _from_16_bits(image, options.range)
    profile = image.info.get("icc_profile")
    # Converting to RGB directly would show whatever color transparent pixels happen to have.
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        return _on_background(image, options.background, profile)
    # A profile is for the channels of the file.
    if profile is not None and image.mode in ("CMYK", "L"):
        image = to_srgb(image, profile)
        profile = None
    if image.mode != "RGB":
        image = image.convert("RGB")
    if profile is not None:
        image = to_srgb(image, profile)
    return image


def _on_background(image: Image.Image, color: str, profile: bytes | None) -> Image.Image:
    """Return an image that has transparent pixels in front of a color, in RGB.

    Bands of rows bound the memory: each step copies what it gets, and drawings of 100 million pixels are not rare.
    """
    flat = Image.new("RGB", image.size)
    band_height = max(1, BAND_PIXELS // image.width)
    for top in range(0, image.height, band_height):
        bottom = min(top + band_height, image.height)
        band = image.crop((0, top, image.width, bottom)).convert("RGBA")
        if profile is not None:
            band = to_srgb(band, profile)
        background = Image.new("RGBA", band.size, color)
        flat.paste(Image.alpha_composite(background, band).convert("RGB"), (0, top))
    return flat


def _from_16_bits(image: Image.Image, value_range: tuple[int, int]) -> Image.Image:
    # Pillow's own conversion would clip to 255 instead of scaling.
    low, high = value_range
    values = np.asarray(image)
    if value_range == DEFAULT_OPTIONS.range:
        _warn_of_fewer_bits(int(values.max()))
    gray = (values.clip(low, high) - low) / ((high - low) / 255)
    return Image.fromarray(gray.round().astype(np.uint8)).convert("RGB")


def _warn_of_fewer_bits(largest: int) -> None:
    """Warn if the values of a 16-bit image end where those of a camera with fewer bits do, which makes it nearly black."""
    bits = max(8, largest.bit_length())
    if largest > 0 and bits <= MAX_CAMERA_BITS:
        largest_of_camera = (1 << bits) - 1
        # The same text for all such images, so that it is shown once.
        warnings.warn(
            f"16-bit images whose values end at {largest_of_camera:,} or below are nearly black; if their camera has {bits} "
            f"bits: data.range=[0,{largest_of_camera}]",
            stacklevel=2,
        )
