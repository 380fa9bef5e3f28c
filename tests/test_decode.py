"""One file, one square: every kind of image as a viewer shows it, by every decoder; bad files are named."""

import re
import warnings

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms.v2.functional import pil_to_tensor

from image_files import BLUE, GREEN, RED, WHITE, photograph, put
from reptk.data.decode import decode
from reptk.errors import DataError


def halves(mode: str, left: object, right: object, size: tuple[int, int] = (40, 40)) -> Image.Image:
    image = Image.new(mode, size, left)
    image.paste(right, (size[0] // 2, 0, *size))
    return image


def sixteen_bit(left: int, right: int) -> Image.Image:
    return Image.fromarray(np.repeat(np.array([[left] * 20 + [right] * 20], dtype=np.uint16), 40, axis=0))


def palette() -> Image.Image:
    image = halves("P", 0, 1)
    image.putpalette([*RED, *BLUE])
    return image


GREY = (128, 128, 128)
DECODED = {
    "RGB": ("a.png", halves("RGB", RED, BLUE), {}, RED, BLUE),
    "16-bit grey": ("a.png", sixteen_bit(0x8080, 0xFFFF), {}, GREY, WHITE),
    "16-bit grey in TIFF": ("a.tif", sixteen_bit(0, 0x8080), {}, (0, 0, 0), GREY),
    "CMYK": ("a.jpg", halves("CMYK", (0, 255, 255, 0), (255, 0, 255, 0)), {}, RED, GREEN),
    "grey": ("a.png", halves("L", 128, 255), {}, GREY, WHITE),
    "1 bit": ("a.png", halves("1", 0, 1), {}, (0, 0, 0), WHITE),
    "palette": ("a.png", palette(), {}, RED, BLUE),
    "palette, transparent bytes": ("a.png", palette(), {"transparency": bytes([0, 255])}, WHITE, BLUE),
    "palette, transparent colour": ("a.gif", palette(), {"transparency": 1}, RED, WHITE),
    "RGBA": ("a.png", halves("RGBA", (*RED, 0), (*BLUE, 255)), {}, WHITE, BLUE),
    "RGBA, half": ("a.webp", halves("RGBA", (0, 0, 0, 127), (*BLUE, 255)), {"lossless": True}, GREY, BLUE),
    "grey with alpha": ("a.png", halves("LA", (7, 0), (128, 255)), {}, WHITE, GREY),
    "animation": (
        "a.gif",
        halves("RGB", RED, BLUE),
        {"save_all": True, "append_images": [halves("RGB", GREEN, GREEN)]},
        RED,
        BLUE,
    ),
}


@pytest.mark.parametrize("kind", DECODED)
def test_every_kind_of_file_shows_what_a_viewer_shows(tmp_path, kind):
    name, image, options, left, right = DECODED[kind]
    image.save(tmp_path / name, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        square = decode(tmp_path / name, 8)
    assert square.dtype == torch.uint8
    tolerance = 3 if name.endswith(".jpg") else 0
    for side, colour in ((square[:, :, 0], left), (square[:, :, -1], right)):
        torch.testing.assert_close(side.int(), torch.tensor(colour)[:, None].expand(3, 8).int(), atol=tolerance, rtol=0)


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_orientation_6_is_turned_upright(tmp_path, ending):
    exif = Image.Exif()
    exif[0x0112] = 6
    halves("RGB", RED, BLUE, size=(80, 40)).save(tmp_path / f"a.{ending}", exif=exif)
    square = decode(tmp_path / f"a.{ending}", 8)
    torch.testing.assert_close(square[:, 0].int(), torch.tensor(RED)[:, None].expand(3, 8).int(), atol=3, rtol=0)
    torch.testing.assert_close(square[:, -1].int(), torch.tensor(BLUE)[:, None].expand(3, 8).int(), atol=3, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (3000, 1), (1, 3000), (7, 9)])
def test_tiny_and_narrow_images_fill_the_square(tmp_path, size):
    put(tmp_path / "a.png", GREEN, size=size)
    assert (decode(tmp_path / "a.png", 16) == torch.tensor(GREEN).view(3, 1, 1)).all()


def test_a_photo_is_pillows_centre_square(tmp_path):
    photograph().save(tmp_path / "a.png")
    expected = ImageOps.fit(photograph(), (64, 64), Image.Resampling.BILINEAR)
    assert torch.equal(decode(tmp_path / "a.png", 64), pil_to_tensor(expected))


def test_a_large_jpeg_read_at_less_than_its_size_is_as_sharp(tmp_path):
    photograph().resize((1280, 854)).save(tmp_path / "a.jpg", quality=95)
    with Image.open(tmp_path / "a.jpg") as whole:
        expected = pil_to_tensor(ImageOps.fit(whole, (300, 300), Image.Resampling.BILINEAR))
    assert (decode(tmp_path / "a.jpg", 300).float() - expected).abs().mean() < 1.5


UNREADABLE = {
    "truncated.jpg": lambda whole: whole[: len(whole) // 2],
    "page.jpg": lambda whole: b"<!doctype html><title>404</title>",
    "pointer.jpg": lambda whole: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n",
    "header.jpg": lambda whole: whole[:20],
    "empty.jpg": lambda whole: b"",
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_an_unreadable_file_is_named(tmp_path, name):
    photograph().save(tmp_path / "whole.jpg")
    (tmp_path / name).write_bytes(UNREADABLE[name]((tmp_path / "whole.jpg").read_bytes()))
    with pytest.raises(DataError, match=f"cannot read {re.escape(str(tmp_path / name))} as an image"):
        decode(tmp_path / name, 32)


@pytest.mark.parametrize("ending", ["png", "gif", "webp", "tif", "bmp"])
def test_a_cut_file_of_any_format_is_named(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    photograph().resize((200, 100)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=re.escape(str(path))):
        decode(path, 32)


def test_an_image_of_too_many_pixels_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    put(tmp_path / "a.png", size=(40, 40))
    with pytest.raises(DataError, match=r"a\.png"):
        decode(tmp_path / "a.png", 8)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.png"):
        decode(tmp_path / "gone.png", 8)
