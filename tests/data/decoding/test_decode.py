"""One encoded image to one square: every kind of image as viewers show it, by every decoder; bad files are named."""

import io
import re
import warnings

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms import CenterCrop, Resize
from torchvision.transforms.v2.functional import pil_to_tensor

from image_files import (
    BLUE,
    GREEN,
    RED,
    WHITE,
    assert_column,
    every_decoder,
    halves,
    needs_simplejpeg,
    photograph,
    sixteen_bit,
    write_image,
)
from reptk.core.errors import DataError, EnvironmentProblem
from reptk.data import Loader, folder
from reptk.data.decoding.decode import FORMATS, decode, decode_picture, decoder, versions_of
from reptk.data.decoding.pixel_options import PixelOptions, to_rgb


def center_square(image: Image.Image, size: int) -> torch.Tensor:
    return pil_to_tensor(CenterCrop(size)(Resize(size)(image)))


def palette() -> Image.Image:
    image = halves("P", 0, 1)
    image.putpalette([*RED, *BLUE])
    return image


GRAY = (128, 128, 128)
KINDS = {
    # file name, image, options of saving, expected colors of the left and right half
    "RGB": ("a.png", halves("RGB", RED, BLUE), {}, RED, BLUE),
    "16-bit gray": ("a.png", sixteen_bit(0x8080, 0xFFFF), {}, GRAY, WHITE),
    "16-bit gray in TIFF": ("a.tif", sixteen_bit(0, 0x8080), {}, (0, 0, 0), GRAY),
    "CMYK": ("a.jpg", halves("CMYK", (0, 255, 255, 0), (255, 0, 255, 0)), {}, RED, GREEN),
    "gray": ("a.png", halves("L", 128, 255), {}, GRAY, WHITE),
    "1 bit": ("a.png", halves("1", 0, 1), {}, (0, 0, 0), WHITE),
    "palette": ("a.png", palette(), {}, RED, BLUE),
    "palette, transparent bytes": ("a.png", palette(), {"transparency": bytes([0, 255])}, WHITE, BLUE),
    "palette, transparent color": ("a.gif", palette(), {"transparency": 1}, RED, WHITE),
    "RGBA": ("a.png", halves("RGBA", (*RED, 0), (*BLUE, 255)), {}, WHITE, BLUE),
    "RGBA, half": ("a.webp", halves("RGBA", (0, 0, 0, 127), (*BLUE, 255)), {"lossless": True}, GRAY, BLUE),
    "gray with alpha": ("a.png", halves("LA", (7, 0), (128, 255)), {}, WHITE, GRAY),
    "animation": (
        "a.gif",
        halves("RGB", RED, BLUE),
        {"save_all": True, "append_images": [halves("RGB", GREEN, GREEN)]},
        RED,
        BLUE,
    ),
}


@every_decoder
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_is_decoded_as_viewers_show_it(tmp_path, kind, jpeg):
    name, image, options, left, right = KINDS[kind]
    image.save(tmp_path / name, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        square = decode(tmp_path / name, 8, jpeg)
    assert square.dtype == torch.uint8
    atol = 3 if name.endswith(".jpg") else 0
    assert_column(square[:, :, 0], left, atol)
    assert_column(square[:, :, -1], right, atol)


@pytest.mark.parametrize("extension", ["jpg", "png"])
def test_orientation_6_is_rotated_upright(tmp_path, extension):
    exif = Image.Exif()
    exif[0x0112] = 6
    halves("RGB", RED, BLUE, size=(80, 40)).save(tmp_path / f"a.{extension}", exif=exif)
    square = decode(tmp_path / f"a.{extension}", 8)
    assert_column(square[:, 0], RED, atol=3)
    assert_column(square[:, -1], BLUE, atol=3)


@every_decoder
@pytest.mark.parametrize("extension", ["png", "jpg"])
@pytest.mark.parametrize("size", [(1, 1), (3000, 1), (1, 3000), (7, 9)])
def test_tiny_and_narrow_images_fill_the_square(tmp_path, size, extension, jpeg):
    write_image(tmp_path / f"a.{extension}", GREEN, size=size)
    square = decode(tmp_path / f"a.{extension}", 16, jpeg).int()
    assert (square - torch.tensor(GREEN).view(3, 1, 1)).abs().max() <= (0 if extension == "png" else 3)


def test_a_photograph_is_torchvisions_center_square(tmp_path):
    photograph().save(tmp_path / "a.png")
    assert torch.equal(decode(tmp_path / "a.png", 64), center_square(photograph(), 64))


def test_a_large_jpeg_decoded_at_a_fraction_of_its_size_is_as_sharp(tmp_path):
    photograph().resize((1280, 854)).save(tmp_path / "a.jpg", quality=95)
    with Image.open(tmp_path / "a.jpg") as image:
        expected = center_square(image, 300)
    assert (decode(tmp_path / "a.jpg", 300).float() - expected).abs().mean() < 1.5


# Bytes instead of files


@every_decoder
@pytest.mark.parametrize("extension", ["jpg", "png"])
def test_bytes_are_decoded_like_their_file(tmp_path, extension, jpeg):
    path = tmp_path / f"a.{extension}"
    photograph().save(path)
    from_file, from_bytes = decode_picture(path, 48, jpeg), decode_picture(path.read_bytes(), 48, jpeg)
    assert np.array_equal(from_file.pixels, from_bytes.pixels)
    assert torch.equal(decode(path.read_bytes(), 48, jpeg), decode(path, 48, jpeg))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (None, "cannot read 9 bytes as an image: it holds a web page"),
        ("0001.jpg of train.tar", "cannot read 0001.jpg of train.tar as an image: it holds a web page"),
    ],
)
def test_unreadable_bytes_are_named(name, message):
    with pytest.raises(DataError, match=message):
        decode_picture(b"<!doctype", 8, "pillow", name=name)


# Unreadable files

UNREADABLE = {
    "truncated.jpg": lambda content: content[: len(content) // 2],
    "page.jpg": lambda content: b"<!doctype html><title>404</title>",
    "pointer.jpg": lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n",
    "header.jpg": lambda content: content[:20],
    "empty.jpg": lambda content: b"",
}


@every_decoder
@pytest.mark.parametrize("name", UNREADABLE)
def test_an_unreadable_file_is_named(tmp_path, name, jpeg):
    photograph().save(tmp_path / "complete.jpg")
    (tmp_path / name).write_bytes(UNREADABLE[name]((tmp_path / "complete.jpg").read_bytes()))
    with pytest.raises(DataError, match=f"cannot read {re.escape(str(tmp_path / name))} as an image"):
        decode(tmp_path / name, 32, jpeg)


@pytest.mark.parametrize("extension", ["png", "gif", "webp", "tif", "bmp"])
def test_a_truncated_file_of_any_format_is_named(tmp_path, extension):
    path = tmp_path / f"a.{extension}"
    photograph().resize((200, 100)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=re.escape(str(path))):
        decode(path, 32)


@every_decoder
@pytest.mark.parametrize("extension", ["png", "jpg"])
def test_an_image_with_too_many_pixels_is_refused(tmp_path, extension, jpeg):
    write_image(tmp_path / f"a.{extension}", size=(40, 40))
    message = rf"a\.{extension}.*40 x 40 pixels are more than 1,000, the limit \(data.max_pixels\)"
    with pytest.raises(DataError, match=message):
        decode(tmp_path / f"a.{extension}", 8, jpeg, PixelOptions(max_pixels=1000))


def test_images_of_more_pixels_than_pillow_allows_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    write_image(tmp_path / "a.png", size=(80, 80))
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode(tmp_path / "a.png", 8)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.png"):
        decode(tmp_path / "gone.png", 8)


def test_formats_that_are_not_listed_are_refused(tmp_path):
    """Pillow would open this file by its content, whatever its name."""
    content = io.BytesIO()
    Image.new("RGB", (8, 8), RED).save(content, "SGI")
    (tmp_path / "a.png").write_bytes(content.getvalue())
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "SGI"
    assert "SGI" not in FORMATS
    with pytest.raises(DataError, match=r"a\.png"):
        decode(tmp_path / "a.png", 8)


def test_pixels_of_unknown_range_are_refused(tmp_path):
    Image.fromarray(np.ones((8, 8), dtype=np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match="floats of unknown range"):
        decode(tmp_path / "a.tif", 8)


# EXIF


def max_inner_difference(square: torch.Tensor, expected: torch.Tensor) -> int:
    """The largest difference without the outermost pixels, where Pillow's filter covers pixels outside the square."""
    return int((square.int() - expected.int())[:, 2:-2, 2:-2].abs().max())


@every_decoder
@pytest.mark.parametrize("extension", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_made_upright(tmp_path, orientation, extension, jpeg):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"rotated.{extension}"
    photograph().crop((0, 0, 300, 200)).save(path, exif=exif)
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    expected = center_square(upright, 150)
    assert max_inner_difference(decode(path, 150, jpeg), expected) <= 2


def test_damaged_exif_data_is_ignored(tmp_path):
    photograph().save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff broken")
    photograph().save(tmp_path / "b.jpg")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.equal(decode(tmp_path / "a.jpg", 32), decode(tmp_path / "b.jpg", 32))


# simplejpeg


@needs_simplejpeg
@pytest.mark.parametrize("size", [(640, 426), (426, 640), (512, 512), (1200, 800), (2000, 1334)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_simplejpeg_agrees_with_pillow(tmp_path, size, mode):
    """Even margins, so that both have the same center; large images are decoded at a half or a quarter of their size."""
    photograph().convert(mode).resize(size).save(tmp_path / "a.jpg", quality=90)
    by_simplejpeg, by_pillow = decode(tmp_path / "a.jpg", 256, "simplejpeg"), decode(tmp_path / "a.jpg", 256)
    assert max_inner_difference(by_simplejpeg, by_pillow) <= 2
    assert (by_simplejpeg.float() - by_pillow.float()).abs().mean() < 0.25


@needs_simplejpeg
def test_simplejpeg_decodes_jpeg_and_pillow_everything_else(tmp_path, monkeypatch):
    import simplejpeg

    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("simplejpeg was called")

    photograph().save(tmp_path / "a.jpg")
    halves("CMYK", (0, 255, 255, 0), (255, 0, 255, 0)).save(tmp_path / "cmyk.jpg")
    write_image(tmp_path / "a.png")
    monkeypatch.setattr(simplejpeg, "decode_jpeg", fail)
    for name in ("cmyk.jpg", "a.png"):
        decode(tmp_path / name, 8, "simplejpeg")
    decode(tmp_path / "a.jpg", 8, "pillow")
    with pytest.raises(DataError, match="simplejpeg was called"):
        decode(tmp_path / "a.jpg", 8, "simplejpeg")


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_a_large_drawing_is_put_on_its_background_as_a_whole(mode: str) -> None:
    """It is converted in bands of rows, the last of which is not full."""
    values = torch.randint(256, (2100, 4096, len(mode)), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image = Image.fromarray(values.numpy(), mode)
    background = Image.new("RGBA", image.size, "white")
    expected = Image.alpha_composite(background, image.convert("RGBA")).convert("RGB")
    assert to_rgb(image).tobytes() == expected.tobytes()


def test_without_simplejpeg_pillow_decodes_and_requesting_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("reptk.data.decoding.decode.find_spec", lambda name: None)
    assert decoder("auto") == "pillow"
    assert versions_of("pillow").startswith("pillow ")
    with pytest.raises(EnvironmentProblem, match=re.escape("pip install 'reptk[jpeg]'")):
        decoder("simplejpeg")


# Threads


def test_decoding_threads_do_not_change_warning_filters(tmp_path):
    """Pillow warns about palettes with transparent bytes, which several threads decode at the same time."""
    for number in range(12):
        palette().save(tmp_path / f"{number}.png", transparency=bytes([0, 255]))
    split = folder(str(tmp_path), size=8).train
    filters = list(warnings.filters)
    for _ in range(5):
        list(Loader(split, batch_size=12, seed=0, workers=4).batches(0, 1))
    assert warnings.filters == filters
