"""One image file to one uint8 square."""

import warnings
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageOps
from torch import Tensor

from reptk.errors import DataError

EXTENSIONS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def decode(path: Path, size: int) -> Tensor:
    """The centre square of an image, (3, size, size) uint8.

    The orientation that the camera noted is applied, 16-bit grey is scaled to 8 bits, transparency is laid over white,
    of an animation the first frame is taken. The shorter side is resized to `size` with antialiasing, whichever way.

    Raises:
        DataError: the file cannot be read as an image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.draft("RGB", (size, size))
                square = ImageOps.fit(_rgb(ImageOps.exif_transpose(image)), (size, size), Image.Resampling.BILINEAR)
    except Exception as cause:
        what = _pretender(path) or cause
        raise DataError(f"cannot read {path} as an image: {what}. Repair it, or take it out of the folder") from cause
    return to_tensor(square)


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB image as (3, H, W) uint8."""
    return rearrange(torch.from_numpy(np.array(image)), "h w c -> c h w")


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


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        return Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
