"""Damaged files are refused as a whole, whatever their format; what does no harm to the pixels is ignored."""

import io
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from image_files import every_decoder, photograph
from reptk.core.errors import DataError
from reptk.data.decoding.decode import decode

DAMAGES = {
    "flipped bit in the pixels": lambda content, middle: (
        content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    ),
    "zeros in the pixels": lambda content, middle: content[:middle] + bytes(4096) + content[middle + 4096 :],
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("with_exif", [False, True])
def test_a_png_with_damaged_pixels_is_refused(tmp_path, damage, with_exif):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = photograph().resize((320, 240))
    image.save(tmp_path / "a.png", exif=exif if with_exif else None)
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(DAMAGES[damage](content, len(content) // 2))
    with pytest.raises(DataError, match=r"a\.png as an image"):
        decode(tmp_path / "a.png", 8)


FUZZED_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
NUM_DAMAGED_FILES = 300
"""Of each format: 2,100 in all."""


@every_decoder
@pytest.mark.parametrize("image_format", FUZZED_FORMATS)
def test_what_pillow_refuses_is_refused(image_format, jpeg):
    """Files with a few flipped bits, zeroed bytes or a missing end: a whole image, or an error that names the file."""
    buffer = io.BytesIO()
    photograph().resize((96, 64)).save(buffer, image_format)
    generator = np.random.default_rng(0)
    num_refused = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(NUM_DAMAGED_FILES):
            content = damaged(buffer.getvalue(), generator)
            try:
                square = decode(content, 16, jpeg)
            except DataError:
                num_refused += 1
                continue
            assert square.shape == (3, 16, 16)
            assert pillow_reads(content)
    assert num_refused > 0


def damaged(content: bytes, generator: np.random.Generator) -> bytes:
    changed = bytearray(content)
    kind = generator.integers(3)
    if kind == 0:
        for position in generator.integers(len(content), size=3):
            changed[position] ^= 1 << generator.integers(8)
    elif kind == 1:
        first = generator.integers(len(content))
        length = min(64, len(content) - first)
        changed[first : first + length] = bytes(length)
    else:
        del changed[generator.integers(len(content)) :]
    return bytes(changed)


def pillow_reads(content: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
    except Exception:
        return False
    return True


@pytest.mark.parametrize("compressed", [False, True])
def test_long_text_in_a_png_is_no_obstacle(tmp_path, compressed):
    text = PngInfo()
    text.add_text("comment", "a" * 3_000_000, zip=compressed)
    photograph().save(tmp_path / "a.png", pnginfo=text)
    photograph().save(tmp_path / "b.png")
    assert torch.equal(decode(tmp_path / "a.png", 32), decode(tmp_path / "b.png", 32))


@pytest.mark.parametrize("extra", [bytes(100_000), b"text behind the end"])
def test_what_follows_the_end_of_a_png_is_ignored(tmp_path, extra):
    photograph().save(tmp_path / "a.png")
    expected = decode(tmp_path / "a.png", 8)
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes() + extra)
    assert torch.equal(decode(tmp_path / "a.png", 8), expected)
