"""Images as data URIs, which are part of the page itself."""

import base64
import io
from typing import Any

from PIL import Image
from torch import Tensor

MAX_SIDE_PX = 128
MAX_LOSSLESS_SIDE_PX = 64


def image_data_uri(image: Tensor, max_side_px: int = MAX_SIDE_PX) -> str:
    """Return (3, H, W) uint8 as a data URI: a lossless PNG if the image is small, else a JPEG of at most `max_side_px`."""
    picture = pillow_image(image)
    if max(picture.size) <= MAX_LOSSLESS_SIDE_PX:
        # Images of CIFAR's size are small as PNG, and JPEG would show its blocks in them.
        return encode_data_uri(picture, "PNG", optimize=True)
    picture.thumbnail((max_side_px, max_side_px), Image.Resampling.LANCZOS)
    return encode_data_uri(picture, "JPEG", quality=82, optimize=True)


def encode_data_uri(picture: Image.Image, file_format: str, **options: Any) -> str:
    """Return a picture as a data URI; `options` are those of Pillow's `save`."""
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    content = base64.b64encode(buffer.getvalue()).decode()
    return f"data:image/{file_format.lower()};base64,{content}"


def pillow_image(image: Tensor) -> Image.Image:
    """Return (3, H, W) uint8 as a Pillow image, with one channel if all three are equal."""
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    # A third of the bytes for a gray image, which has three equal channels in a data set.
    if bool((image == image[:1]).all()):
        return picture.convert("L")
    return picture
