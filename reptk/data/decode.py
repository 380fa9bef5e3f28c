"""One image file to one uint8 square, by Pillow, or for JPEG by simplejpeg where that is installed."""

import io
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import PIL
import torch
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional

from reptk.core.errors import DataError, EnvironmentProblem

EXTENSIONS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What Pillow may read: its rarer decoders stay shut, whatever a file claims to be."""

DECODE_VERSION = 1
"""To be raised whenever the same file would give other pixels: it makes old caches void."""

ORIENTATION = 0x0112  # the EXIF tag

Jpeg = Literal["auto", "pillow", "simplejpeg"]
Square = NDArray[np.uint8]
"""(size, size, 3)."""


def decode(path: Path, size: int, jpeg: Jpeg = "pillow") -> Tensor:
    """The centre square of an image, (3, size, size) uint8, in memory by pixel.

    The orientation that the camera noted is applied, 16-bit grey is scaled to 8 bits, transparency is laid over white,
    of an animation the first frame is taken. The shorter side is resized to `size` with antialiasing, whichever way.

    Args:
        path: the file.
        size: side in pixels.
        jpeg: who decodes JPEG. By simplejpeg and torch's resize the picture is the same to within two levels, but for
            its outermost pixels, and half a pixel aside where a margin is odd; what simplejpeg does not take (CMYK,
            damage) goes to Pillow.

    Raises:
        DataError: the file cannot be read as an image.
        EnvironmentProblem: simplejpeg is asked for and not installed.
    """
    square = np.empty((size, size, 3), dtype=np.uint8)
    decode_into(path, square, decoder(jpeg))
    return rearrange(torch.from_numpy(square), "h w c -> c h w")


def decode_into(path: Path, square: Square, jpeg: str) -> None:
    """Decode into (size, size, 3) uint8; safe in threads, which run at the same time for most of it.

    Raises:
        DataError: the file cannot be read as an image.
    """
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            _guard(image)
            if jpeg == "simplejpeg" and image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
                pixels = _by_simplejpeg(content, image, len(square))
                if pixels is not None:
                    _fit(pixels, square)
                    return
            image.draft("RGB", (len(square), len(square)))
            upright = _rgb(ImageOps.exif_transpose(image) if _orientation(image) != 1 else image)
            np.copyto(square, ImageOps.fit(upright, square.shape[:2], Image.Resampling.BILINEAR))
    except Exception as cause:
        why = _pretender(path) or _plainly(cause)
        raise DataError(f"cannot read {path} as an image: {why}. Repair it, or take it out of the folder") from cause


def decoder(jpeg: Jpeg) -> str:
    """Who decodes JPEG here: `pillow` or `simplejpeg`; `auto` is simplejpeg where it is installed.

    Raises:
        EnvironmentProblem: simplejpeg is asked for and not installed.
    """
    if jpeg == "pillow":
        return "pillow"
    if find_spec("simplejpeg") is not None:
        return "simplejpeg"
    if jpeg == "simplejpeg":
        raise EnvironmentProblem("data.jpeg is 'simplejpeg', which is not installed: pip install 'reptk[jpeg]'")
    return "pillow"


def versions_of(jpeg: str) -> str:
    """What the pixels depend on beside the files: `pillow 13.0.0`, or `simplejpeg 1.9.0, pillow 13.0.0, torch 2.14.1`."""
    pillow = f"pillow {PIL.__version__}"
    return pillow if jpeg == "pillow" else f"simplejpeg {version('simplejpeg')}, {pillow}, torch {torch.__version__}"


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB image as (3, H, W) uint8."""
    return rearrange(torch.from_numpy(np.array(image)), "h w c -> c h w")


def _guard(image: Image.Image) -> None:
    """Pillow only warns of images up to twice its limit."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise ValueError(f"{image.width} x {image.height} pixels, more than the {limit:,} that are safe to open")


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # a damaged note says nothing about the pixels
        return 1


# EXIF orientation -> what to do to rows and columns: (swap them, reverse rows, reverse columns), in this order.
TURNS = {
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


def _by_simplejpeg(content: bytes, image: Image.Image, size: int) -> NDArray[np.uint8] | None:
    """The whole picture, upright, at the smallest of 1, 1/2, 1/4, 1/8 that covers the square; None if refused."""
    import simplejpeg

    # Eighths in between exist, but have no fast code and take longer than the whole picture.
    factor = next((n for n in (8, 4, 2) if min(image.size) // n >= size), 1)
    smallest = {"min_height": -(-image.height // factor), "min_width": -(-image.width // factor)}
    try:
        pixels = simplejpeg.decode_jpeg(content, "RGB", **smallest)
    except ValueError:
        return None
    swap, rows, columns = TURNS.get(_orientation(image), (False, False, False))
    pixels = pixels.swapaxes(0, 1) if swap else pixels
    return pixels[:: -1 if rows else 1, :: -1 if columns else 1]


def _fit(pixels: NDArray[np.uint8], square: Square) -> None:
    """The centre square of (H, W, 3), resized."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    centre = np.ascontiguousarray(pixels[top : top + side, left : left + side])
    if side != len(square):
        # The axis of one is added first: with another stride torch would not see channels last, and take thrice as long.
        rows = rearrange(torch.from_numpy(centre)[None], "b h w c -> b c h w")
        resized = functional.interpolate(rows, square.shape[:2], mode="bilinear", antialias=True)
        centre = rearrange(resized, "b c h w -> b h w c")[0].numpy()
    np.copyto(square, centre)


def _pretender(path: Path) -> str | None:
    """What files that only look like images often are."""
    try:
        with path.open("rb") as file:
            head = file.read(64).lstrip().lower()
    except OSError:
        return None
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; fetch the file itself (git lfs pull)"
    return "it holds a web page" if head.startswith((b"<!doctype", b"<html")) else None


def _plainly(cause: Exception) -> str:
    """Pillow's own message names the bytes' place in memory."""
    return (
        f"it is in none of the formats {', '.join(FORMATS)}"
        if isinstance(cause, UnidentifiedImageError)
        else str(cause)
    )


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("its pixels are floats of unknown range; convert it to 8 or 16 bits")
    if image.mode.startswith("I;16") or image.mode == "I":
        return Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
