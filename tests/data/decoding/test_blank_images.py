"""Blank images: all pixels equal, up to the noise of encoding."""

import io

import numpy as np
import pytest
from PIL import Image

from reptk.data.decoding.blank_images import is_blank, may_be_blank


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    image.save(content, kind)
    return content.getvalue()


def noisy(levels: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(100, 101 + levels, (50, 70, 3), np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (encoded(Image.new("RGB", (70, 50), "orange")), True),
        (encoded(Image.new("L", (70, 50), 7)), True),
        (encoded(Image.new("RGB", (70, 50), "orange"), "JPEG"), True),
        (encoded(Image.new("RGBA", (70, 50), (9, 8, 7, 0))), True),
        (encoded(Image.new("I;16", (70, 50), 30000)), True),
        (encoded(noisy(8)), True),
        (encoded(noisy(9)), False),
        (b"no image", False),
    ],
)
def test_a_blank_image(content: bytes, expected: bool) -> None:
    assert is_blank(content) == expected


def test_a_single_pixel_is_no_blank_image() -> None:
    image = Image.new("RGB", (70, 50), "white")
    image.putpixel((1, 1), (0, 0, 0))
    assert not is_blank(encoded(image))
    # It is outside the center, and only suspected of being blank.
    assert may_be_blank(np.asarray(image)[:, 10:60])
    assert not may_be_blank(np.asarray(image))
