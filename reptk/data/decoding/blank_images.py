"""Blank images: those whose pixels all have one color, up to the noise of encoding."""

import numpy as np
from numpy.typing import NDArray

from reptk.data.decoding.decode import open_image
from reptk.data.decoding.pixel_options import DEFAULT_OPTIONS, PixelOptions, to_rgb

MAX_LEVELS = 8
"""No two pixels of a blank image differ by more in a channel, of 255 levels: JPEG and scanners make so much of one color."""

REDUCTION_LEVELS = 2
"""How much a decoder may add when it reduces an image."""


def may_be_blank(square: NDArray[np.uint8]) -> bool:
    """Return whether an image can be blank, by a reduced part of it (S, S, 3), which differs less than the image."""
    return bool((_ranges(square) <= MAX_LEVELS + REDUCTION_LEVELS).all())


def is_blank(content: bytes, options: PixelOptions = DEFAULT_OPTIONS) -> bool:
    """Return whether all pixels of an image are equal, up to `MAX_LEVELS`.

    Args:
        content: the bytes of its file.
        options: as for `decode`: a transparent image is blank, since only its background is seen.
    """
    try:
        with open_image(content, options.max_pixels) as image:
            pixels = np.asarray(to_rgb(image, options))
    except Exception:  # Pillow raises various types for damaged files
        return False
    return bool((_ranges(pixels) <= MAX_LEVELS).all())


def _ranges(pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the largest difference between two pixels (3,) of an image (H, W, 3)."""
    return np.ptp(pixels.reshape(-1, 3).astype(np.int64), axis=0)
