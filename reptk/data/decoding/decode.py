"""One encoded image to uint8 pixels: JPEG by simplejpeg where it is installed, everything else by Pillow."""

import functools
import io
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import PIL
import torch
from einops import rearrange
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from reptk.core.errors import DataError, EnvironmentProblem
from reptk.core.file_retries import with_retries
from reptk.core.foreign_files import UnsuitableFile, read_bytes
from reptk.core.printable_names import in_one_line
from reptk.data.decoding.color_profile import to_srgb
from reptk.data.decoding.pixel_options import DEFAULT_OPTIONS, MAX_PIXELS, PixelOptions, to_rgb
from reptk.data.decoding.png_check import PNG_SIGNATURE, checked_png
from reptk.data.decoding.raw_photograph import HAS_RAW, RAW_EXTENSIONS, is_raw, open_raw
from reptk.data.decoding.resize import (
    DEFAULT_SQUARE,
    Pixels,
    SquareOptions,
    resize_array,
    resize_picture,
    write_square,
)

HAS_HEIF = find_spec("pillow_heif") is not None
"""Whether photographs of phones can be read: Pillow reads them once pillow-heif is installed and registered."""

HEIF_EXTENSIONS = frozenset({".heic", ".heif", ".hif"})
PILLOW_EXTENSIONS = frozenset(
    {".apng", ".avif", ".bmp", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pgm", ".png"}
    | {".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"}
)
EXTENSIONS = PILLOW_EXTENSIONS
if HAS_HEIF:
    EXTENSIONS = EXTENSIONS | HEIF_EXTENSIONS
if HAS_RAW:
    EXTENSIONS = EXTENSIONS | RAW_EXTENSIONS

# Pillow opens MPO as JPEG. Files of TGA have no signature, so it comes last.
PILLOW_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP", "AVIF", "JPEG2000", "TGA")
FORMATS = PILLOW_FORMATS
"""The formats that Pillow may open. Its rarer decoders are not used, whatever format a file claims to be."""

if HAS_HEIF:
    FORMATS = ("HEIF", *PILLOW_FORMATS)

DECODE_VERSION = 3
"""Must be increased whenever the same file would give other pixels: it invalidates the caches on disk."""

EXIF_ORIENTATION = 0x0112

MAX_BYTES_PER_PIXEL = 4
MIN_FILE_LIMIT_BYTES = 1 << 24
"""A file may have `MAX_BYTES_PER_PIXEL` bytes for each of `max_pixels`, but any file may have `MIN_FILE_LIMIT_BYTES`."""

UNREDUCED = 8
"""Without `reduce_jpeg`, a JPEG file is still reduced to 8 times the result, which bounds the memory for huge ones."""

HEIC_STARTS = (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftyphevc")
"""Bytes 4 to 12 of photographs by iPhones and other phones."""

Jpeg = Literal["auto", "pillow", "simplejpeg"]


class DecodedImage(NamedTuple):
    """A decoded image.

    Attributes:
        pixels: (height, width, 3) uint8, upright, in RGB.
        file_size_px: width and height in the file.
        mode: Pillow's mode of the file.
    """

    pixels: Pixels
    file_size_px: tuple[int, int]
    mode: str


def decode(
    source: Path | bytes,
    size: int,
    jpeg: Jpeg = "pillow",
    options: PixelOptions = DEFAULT_OPTIONS,
    square: SquareOptions = DEFAULT_SQUARE,
) -> Tensor:
    """Return an image as a square, (3, size, size) uint8, in channels-last memory.

    Args:
        source, jpeg, options: see `decode_picture`.
        size: side of the square.
        square: what becomes of an image that is not square: by default its center square.

    Raises:
        DataError: the source cannot be read as an image.
        EnvironmentProblem: `jpeg` is simplejpeg, and it is not installed.
    """
    picture = decode_picture(source, size, decoder(jpeg), options=options, square=square)
    pixels = np.empty((size, size, 3), dtype=np.uint8)
    write_square(picture.pixels, pixels, square)
    return rearrange(torch.from_numpy(pixels), "h w c -> c h w")


def decode_picture(
    source: Path | bytes,
    size: int,
    jpeg: str,
    *,
    options: PixelOptions = DEFAULT_OPTIONS,
    square: SquareOptions = DEFAULT_SQUARE,
    name: str | None = None,
) -> DecodedImage:
    """Decode an image, by default with its proportions.

    The EXIF orientation is applied, colors are converted to sRGB by the file's ICC profile, 16-bit gray is scaled to 8 bits,
    transparent pixels are blended with a background, and of an animation the first frame is decoded. The shorter side is
    resized to `size` with antialiasing, up or down. A file is decoded as a whole or not at all.

    Several threads may decode at the same time; most of the work does not hold the interpreter lock.

    Args:
        source: a file, or the bytes of one, e.g. of a member of a tar archive.
        size: side of the square that the image will become.
        jpeg: `pillow` or `simplejpeg`; see `decoder`. simplejpeg with torch's resize differs from Pillow by less than a level
            on average. JPEG files that simplejpeg does not decode (CMYK, damaged ones) are decoded by Pillow.
        options: see `PixelOptions`.
        square: `resize`, `interpolation` and `reduce_jpeg` are used; see `resize_picture`.
        name: what errors call the image; by default its path, or the number of its bytes.

    Raises:
        DataError: the source cannot be read as an image.
    """
    content = b""
    try:
        if isinstance(source, bytes):
            content = source
        else:
            content = with_retries(functools.partial(read_image_file, source, options))
        return _decode_bytes(content, size, jpeg, options, square)
    except Exception as cause:
        if name is None and isinstance(source, bytes):
            name = f"{len(source):,} bytes"
        elif name is None:
            name = str(source)
        name = in_one_line(name)
        if isinstance(cause, FileNotFoundError):
            raise DataError(f"cannot read {name}: there is no such file") from cause
        if isinstance(cause, IsADirectoryError):
            raise DataError(f"cannot read {name}: it is a folder") from cause
        if isinstance(cause, UnsuitableFile):
            raise DataError(f"cannot read {name}: it {cause.reason}") from cause
        why = _non_image_content(content) or _message(cause)
        raise DataError(f"cannot read {name} as an image: {why}. Repair it, or take it out of the folder") from cause


def read_image_file(path: Path, options: PixelOptions = DEFAULT_OPTIONS) -> bytes:
    """Return the encoded content of an image file.

    Raises:
        OSError: it is missing, no regular file, or larger than an image of `max_pixels` can be.
    """
    return read_bytes(path, max(MIN_FILE_LIMIT_BYTES, MAX_BYTES_PER_PIXEL * options.max_pixels))


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
    """Return the versions that the pixels depend on: `pillow 13.0.0, torch 2.14.1`, or `simplejpeg 1.9.0, pillow ...`."""
    versions = f"pillow {PIL.__version__}"
    if HAS_HEIF:
        versions += f", pillow-heif {version('pillow-heif')}"
    if HAS_RAW:
        versions += f", rawpy {version('rawpy')}"
    if jpeg == "simplejpeg":
        versions = f"simplejpeg {version('simplejpeg')}, {versions}"
    return f"{versions}, torch {torch.__version__}"


def to_tensor(image: Image.Image) -> Tensor:
    """Return an RGB image as (3, H, W) uint8."""
    return rearrange(torch.from_numpy(np.array(image)), "h w c -> c h w")


def _decode_bytes(content: bytes, size: int, jpeg: str, options: PixelOptions, square: SquareOptions) -> DecodedImage:
    smallest_px = size
    if not square.reduce_jpeg:
        smallest_px = UNREDUCED * size
    with open_image(content, options.max_pixels) as image:
        file_size_px, mode = image.size, image.mode
        # MPO is JPEG with further images, as some cameras write it. Other modes (CMYK) are left to Pillow.
        if jpeg == "simplejpeg" and image.format in ("JPEG", "MPO") and mode in ("RGB", "L"):
            decoded = _decode_with_simplejpeg(content, image, smallest_px)
            if decoded is not None:
                pixels = resize_array(decoded, size, square.resize, square.interpolation)
                if "icc_profile" in image.info:
                    # A profile of gray images is for a single channel.
                    resized = Image.fromarray(pixels).convert(mode)
                    pixels = np.asarray(to_srgb(resized, image.info["icc_profile"]).convert("RGB"))
                return DecodedImage(pixels, file_size_px, mode)
        # JPEG alone: decode at a fraction of the size if that is large enough.
        image.draft("RGB", (smallest_px, smallest_px))
        # Before the EXIF data, which are behind the pixels of a PNG: reading them would decode, and hide errors.
        image.load()
        upright = image
        if _orientation(image) != 1:
            upright = ImageOps.exif_transpose(image)
        pixels = resize_picture(to_rgb(upright, options), size, square.resize, square.interpolation)
        return DecodedImage(pixels, file_size_px, mode)


def open_image(content: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open an image by its header, without decoding it; a raw photograph is developed.

    Pillow's limit of pixels is raised to `max_pixels`, for the whole process.

    Raises:
        Exception: of any type: it is no image, or damaged, or has too many pixels.
    """
    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, max_pixels)
    _register_heif()
    if is_raw(content):
        return open_raw(content, max_pixels)
    if content.startswith(PNG_SIGNATURE):
        content = checked_png(content)
    image = Image.open(io.BytesIO(content), formats=FORMATS)
    _check_num_pixels(image, max_pixels)
    return image


@functools.cache
def _register_heif() -> None:
    """Let Pillow open HEIF files if pillow-heif is installed."""
    if HAS_HEIF:
        import pillow_heif

        pillow_heif.register_heif_opener()


def _check_num_pixels(image: Image.Image, limit: int) -> None:
    """Refuse what may be a decompression bomb."""
    if image.width * image.height > limit:
        raise ValueError(
            f"{image.width:,} x {image.height:,} pixels are more than {limit:,}, the limit (data.max_pixels)"
        )


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


def _decode_with_simplejpeg(content: bytes, image: Image.Image, smallest_px: int) -> Pixels | None:
    """Decode an upright image (H, W, 3) whose sides are at least `smallest_px`, if the file is that large.

    Returns None if simplejpeg refuses the file.
    """
    import simplejpeg

    # libjpeg can also scale by other eighths, but without SIMD code, which takes longer than decoding at full size.
    divisor = 1
    for candidate in (8, 4, 2):
        if min(image.size) // candidate >= smallest_px:
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


def _non_image_content(content: bytes) -> str | None:
    """Say what a file is that is often mistaken for an image."""
    head = content[:64].lstrip().lower()
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; fetch the file itself (git lfs pull)"
    if head.startswith((b"<!doctype", b"<html")):
        return "it holds a web page"
    if content[4:12] in HEIC_STARTS and not HAS_HEIF:
        return "it is a HEIC photograph, whatever its name; to read these: pip install 'reptk[heif]'"
    return None


def _message(cause: Exception) -> str:
    if isinstance(cause, UnidentifiedImageError):  # Pillow's message shows only the address of the buffer
        return f"it is in none of the formats {', '.join(FORMATS)}"
    return str(cause)
