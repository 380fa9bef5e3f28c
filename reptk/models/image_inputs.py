"""Images as people have them, paths, PIL images, arrays and tensors of the usual layouts, as tensors (3, H, W)."""

import os
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from reptk.core.files import expand_home
from reptk.data.decoding.decode import decode
from reptk.data.decoding.pixel_options import to_rgb
from reptk.data.decoding.resize import DEFAULT_SQUARE, SquareOptions, resize_picture, write_square

ImageInput = str | os.PathLike | Image.Image | NDArray | Tensor
CHANNELS = (1, 3, 4)
"""Gray, RGB, and RGB with an alpha channel, which is blended with white."""


def image_tensors(
    images: ImageInput | Sequence[ImageInput], decode_px: int, square: SquareOptions = DEFAULT_SQUARE
) -> Iterator[Tensor]:
    """Yield batches (b, 3, H, W), uint8 or floats in 0..1, in the order of the images: files are read one by one.

    Files and PIL images become squares, and so the same pixels; arrays and tensors remain as they are.

    Args:
        images: one image or several: paths, PIL images, arrays or tensors. Tensors are (3, H, W) or (H, W, 3), arrays
            (H, W, 3), (3, H, W) or (H, W), or a batch of such. They are uint8 in 0..255 or floats in 0..1.
        decode_px: side of the squares.
        square: how files and PIL images become squares.

    Raises:
        DataError: a file that cannot be read as an image.
        ValueError: another layout, another type, or an empty sequence.
        TypeError: something that is no image.
    """
    if isinstance(images, np.ndarray | Tensor):
        yield _from_array(images)
        return
    if isinstance(images, str | os.PathLike | Image.Image):
        images = [images]
    if not isinstance(images, Sequence) or not len(images):
        raise ValueError("give an image, or a sequence of at least one")
    for image in images:
        yield _from_one(image, decode_px, square)


def _from_one(image: ImageInput, decode_px: int, square: SquareOptions) -> Tensor:
    """Return one image as a batch (1, 3, H, W)."""
    if isinstance(image, str | os.PathLike):
        return decode(expand_home(image), decode_px, square=square)[None]
    if isinstance(image, Image.Image):
        rgb = to_rgb(ImageOps.exif_transpose(image))
        picture = resize_picture(rgb, decode_px, square.resize, square.interpolation)
        pixels = np.empty((decode_px, decode_px, 3), np.uint8)
        write_square(picture, pixels, square)
        return rearrange(torch.from_numpy(pixels), "h w c -> c h w")[None]
    if isinstance(image, np.ndarray | Tensor):
        batch = _from_array(image)
        if len(batch) != 1:
            raise ValueError(f"an image of a sequence must be a single one, got {tuple(image.shape)}")
        return batch
    raise TypeError(f"an image is a path, a PIL image, an array or a tensor, not {type(image).__name__}")


def _from_array(array: NDArray | Tensor) -> Tensor:
    """Return images (b, 3, H, W) of an array or tensor of one image or of a batch."""
    images = array
    if isinstance(array, np.ndarray):
        # A copy where torch would warn, of what can be read but not written.
        images = torch.from_numpy(np.require(array, requirements=["C", "W"]))
    # Where both are possible, tensors have their channels first and arrays last.
    images = _channels_first(images, is_likely=isinstance(array, Tensor))
    if images.ndim == 3:
        images = images[None]
    if images.numel() == 0:
        raise ValueError(f"there are no pixels in an array of shape {tuple(array.shape)}")
    return _as_rgb(_as_bytes_or_floats(images))


def _channels_first(images: Tensor, is_likely: bool) -> Tensor:
    """Return (..., C, H, W) of (H, W), (..., C, H, W) or (..., H, W, C)."""
    if images.ndim == 2:
        return images[None]
    if images.ndim in (3, 4):
        may_be_first = images.shape[-3] in CHANNELS
        may_be_last = images.shape[-1] in CHANNELS
        if may_be_first and (is_likely or not may_be_last):
            return images
        if may_be_last:
            return rearrange(images, "... h w c -> ... c h w")
    raise ValueError(f"images must be (3, H, W), (H, W, 3) or a batch of such, got {tuple(images.shape)}")


def _as_bytes_or_floats(images: Tensor) -> Tensor:
    if images.dtype == torch.uint8:
        return images
    if images.dtype == torch.bool:
        return images.to(torch.uint8) * 255
    if not images.is_floating_point():
        images = images.long()  # torch has no minimum of some unsigned integers
    low, high = float(images.min()), float(images.max())
    if images.is_floating_point():
        # Compared so that NaN is refused, too. The tolerance is for rounding, e.g. of images that were resized.
        if not (low >= -1e-3 and high <= 1 + 1e-3):
            raise ValueError(f"float images must lie in 0..1, got {low:.3g} to {high:.3g}; divide by 255?")
        return images.float().clamp(0, 1)
    if low < 0 or high > 255:
        raise ValueError(f"integer images must lie in 0..255, got {low:g} to {high:g}")
    return images.to(torch.uint8)


def _as_rgb(images: Tensor) -> Tensor:
    """Return (b, 3, H, W) of images (b, 1, 3 or 4, H, W)."""
    if images.shape[1] == 1:
        return images.expand(-1, 3, -1, -1)
    if images.shape[1] == 3:
        return images
    white = 255.0 if images.dtype == torch.uint8 else 1.0
    alpha = images[:, 3:].float() / white
    blended = images[:, :3] * alpha + white * (1 - alpha)
    if images.dtype == torch.uint8:
        blended = blended.round()
    return blended.to(images.dtype)
