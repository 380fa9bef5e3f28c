"""One encoded image to one uint8 square: JPEG by simplejpeg where it is installed, everything else by Pillow."""

import io
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import PIL
import torch
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional

from reptk.core.errors import DataError, EnvironmentProblem
from reptk.data.heif import HEIF_EXTENSIONS, HEIF_FORMAT, register_heif

EXTENSIONS = frozenset(
    {".apng", ".avif", ".bmp", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pgm", ".png"}
    | {".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"}
)
# Pillow opens MPO as JPEG. Files of TGA have no signature, so it comes last.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP", "AVIF", "JPEG2000", "TGA")
"""The formats that Pillow may open. Its rarer decoders are not used, whatever format a file claims to be."""

# On import, since several threads decode at the same time.
HAS_HEIF = register_heif()
if HAS_HEIF:
    EXTENSIONS |= HEIF_EXTENSIONS
    FORMATS = (HEIF_FORMAT, *FORMATS)

DECODE_VERSION = 1
"""Must be increased whenever the same file would give other pixels: it invalidates the caches on disk."""

EXIF_ORIENTATION = 0x0112

Jpeg = Literal["auto", "pillow", "simplejpeg"]
Square = NDArray[np.uint8]
"""(size, size, 3)."""


def decode(source: Path | bytes, size: int, jpeg: Jpeg = "pillow") -> Tensor:
    """Return the center square of an image, (3, size, size) uint8, in channels-last memory.

    The EXIF orientation is applied, 16-bit gray is scaled to 8 bits, transparent pixels are blended with white, and of an
    animation the first frame is decoded. The shorter side is resized to `size` with antialiasing, up or down.

    Args:
        source: a file, or the bytes of one.
        size: side in pixels.
        jpeg: the JPEG decoder. simplejpeg with torch's resize differs from Pillow by at most two levels, except for the
            outermost pixels, and is shifted by half a pixel if a margin is odd. JPEG files that simplejpeg does not
            decode (CMYK, damaged ones) are decoded by Pillow.

    Raises:
        DataError: the source cannot be read as an image.
        EnvironmentProblem: `jpeg` is simplejpeg, and it is not installed.
    """
    square = np.empty((size, size, 3), dtype=np.uint8)
    decode_into(source, square, decoder(jpeg))
    return rearrange(torch.from_numpy(square), "h w c -> c h w")


def decode_into(source: Path | bytes, out: Square, jpeg: str, *, name: str | None = None) -> None:
    """Decode an image into `out`, (size, size, 3) uint8, as described for `decode`.

    Several threads may decode at the same time; most of the work does not hold the interpreter lock.

    Args:
        source: a file, or the bytes of one, e.g. of a member of a tar archive.
        out: the pixels are written here.
        jpeg: `pillow` or `simplejpeg`; see `decoder`.
        name: what errors call the image; by default its path, or the number of its bytes.

    Raises:
        DataError: the source cannot be read as an image.
    """
    content = b""
    try:
        content = source if isinstance(source, bytes) else source.read_bytes()
        _decode_bytes(content, out, jpeg)
    except Exception as cause:
        if name is None:
            name = f"{len(source):,} bytes" if isinstance(source, bytes) else str(source)
        why = _non_image_content(content) or _message(cause)
        raise DataError(f"cannot read {name} as an image: {why}. Repair it, or take it out of the folder") from cause


def decoder(jpeg: Jpeg) -> str:
    """Return the JPEG decoder to use, `pillow` or `simplejpeg`; `auto` is simplejpeg if it is installed.

    Raises:
        EnvironmentProblem: `jpeg` is simplejpeg, and it is not installed.
    """
    if jpeg == "pillow":
        return "pillow"
    if find_spec("simplejpeg") is not None:
        return "simplejpeg"
    if jpeg == "simplejpeg":
        raise EnvironmentProblem("data.jpeg is 'simplejpeg', which is not installed: pip install 'reptk[jpeg]'")
    return "pillow"


def versions_of(jpeg: str) -> str:
    """Return the versions that the pixels depend on: `pillow 13.0.0`, or `simplejpeg 1.9.0, pillow 13.0.0, torch 2.14.1`."""
    if jpeg == "pillow":
        return f"pillow {PIL.__version__}"
    return f"simplejpeg {version('simplejpeg')}, pillow {PIL.__version__}, torch {torch.__version__}"


def to_tensor(image: Image.Image) -> Tensor:
    """Return an RGB image as (3, H, W) uint8."""
    return rearrange(torch.from_numpy(np.array(image)), "h w c -> c h w")


def _decode_bytes(content: bytes, out: Square, jpeg: str) -> None:
    size = len(out)
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        _check_num_pixels(image)
        # MPO is JPEG with further images, as some cameras write it. Other modes (CMYK) are left to Pillow.
        if jpeg == "simplejpeg" and image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
            pixels = _decode_with_simplejpeg(content, image, size)
            if pixels is not None:
                _fit(pixels, out)
                return
        image.draft("RGB", (size, size))  # JPEG alone: decode at a fraction of the size if that is large enough
        upright = image
        if _orientation(image) != 1:
            upright = ImageOps.exif_transpose(image)
        np.copyto(out, ImageOps.fit(_to_rgb(upright), (size, size), Image.Resampling.BILINEAR))


def _check_num_pixels(image: Image.Image) -> None:
    """Refuse what Pillow considers a decompression bomb; up to twice its limit, Pillow itself only warns."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise ValueError(f"{image.width} x {image.height} pixels, more than the {limit:,} that are safe to open")


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # damaged EXIF data does not affect the pixels
        return 1


class _Transpose(NamedTuple):
    """What makes an image upright, in this order."""

    swap_axes: bool = False
    reverse_rows: bool = False
    reverse_columns: bool = False


_TRANSPOSE_OF_ORIENTATION = {
    2: _Transpose(reverse_columns=True),
    3: _Transpose(reverse_rows=True, reverse_columns=True),
    4: _Transpose(reverse_rows=True),
    5: _Transpose(swap_axes=True),
    6: _Transpose(swap_axes=True, reverse_columns=True),
    7: _Transpose(swap_axes=True, reverse_rows=True, reverse_columns=True),
    8: _Transpose(swap_axes=True, reverse_rows=True),
}


def _decode_with_simplejpeg(content: bytes, image: Image.Image, size: int) -> NDArray[np.uint8] | None:
    """Decode an upright image (H, W, 3) whose sides are at least `size`, if the file is that large.

    Returns None if simplejpeg refuses the file.
    """
    import simplejpeg

    # libjpeg can also scale by other eighths, but without SIMD code, which takes longer than decoding at full size.
    divisor = 1
    for candidate in (8, 4, 2):
        if min(image.size) // candidate >= size:
            divisor = candidate
            break
    # Rounded up, as libjpeg rounds the sides of reduced images.
    min_height = -(-image.height // divisor)
    min_width = -(-image.width // divisor)
    try:
        pixels = simplejpeg.decode_jpeg(content, "RGB", min_height=min_height, min_width=min_width)
    except ValueError:
        return None
    transpose = _TRANSPOSE_OF_ORIENTATION.get(_orientation(image), _Transpose())
    if transpose.swap_axes:
        pixels = pixels.swapaxes(0, 1)
    if transpose.reverse_rows:
        pixels = pixels[::-1]
    if transpose.reverse_columns:
        pixels = pixels[:, ::-1]
    return pixels


def _fit(pixels: NDArray[np.uint8], out: Square) -> None:
    """Resize the center square of (H, W, 3) into `out`."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    top = (height - side) // 2
    left = (width - side) // 2
    center = np.ascontiguousarray(pixels[top : top + side, left : left + side])
    if side != len(out):
        # The batch axis comes first: with the strides of rearranging a single image, torch would not recognize channels
        # last and take three times as long.
        batch = rearrange(torch.from_numpy(center)[None], "b h w c -> b c h w")
        resized = functional.interpolate(batch, out.shape[:2], mode="bilinear", antialias=True)
        center = rearrange(resized, "b c h w -> b h w c")[0].numpy()
    np.copyto(out, center)


def _non_image_content(content: bytes) -> str | None:
    """Say what a file is that is often mistaken for an image."""
    head = content[:64].lstrip().lower()
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; fetch the file itself (git lfs pull)"
    if head.startswith((b"<!doctype", b"<html")):
        return "it holds a web page"
    return None


def _message(cause: Exception) -> str:
    if isinstance(cause, UnidentifiedImageError):  # Pillow's message shows only the address of the buffer
        return f"it is in none of the formats {', '.join(FORMATS)}"
    return str(cause)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("its pixels are floats of unknown range; convert it to 8 or 16 bits")
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow's own conversion would clip to 255 instead of scaling.
        gray = (np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8)
        return Image.fromarray(gray).convert("RGB")
    # Converting to RGB directly would show whatever color transparent pixels happen to have.
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    if image.mode != "RGB":
        image = image.convert("RGB")
    return image
