"""One file, one square: every kind of image as a viewer shows it, by every decoder; bad files are named."""

import io
import re
import warnings
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms.v2.functional import pil_to_tensor

from image_files import BLUE, GREEN, RED, WHITE, photograph, put
from reptk.core.errors import DataError, EnvironmentProblem
from reptk.data import Loader, folder
from reptk.data.decode import FORMATS, decode, decoder, versions_of


def jpegs() -> list[object]:
    absent = pytest.mark.skipif(find_spec("simplejpeg") is None, reason="simplejpeg is not installed")
    return ["pillow", pytest.param("simplejpeg", marks=absent)]


every_decoder = pytest.mark.parametrize("jpeg", jpegs())


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


@every_decoder
@pytest.mark.parametrize("kind", DECODED)
def test_every_kind_of_file_shows_what_a_viewer_shows(tmp_path, kind, jpeg):
    name, image, options, left, right = DECODED[kind]
    image.save(tmp_path / name, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        square = decode(tmp_path / name, 8, jpeg)
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


@every_decoder
@pytest.mark.parametrize("ending", ["png", "jpg"])
@pytest.mark.parametrize("size", [(1, 1), (3000, 1), (1, 3000), (7, 9)])
def test_tiny_and_narrow_images_fill_the_square(tmp_path, size, ending, jpeg):
    put(tmp_path / f"a.{ending}", GREEN, size=size)
    square = decode(tmp_path / f"a.{ending}", 16, jpeg).int()
    assert (square - torch.tensor(GREEN).view(3, 1, 1)).abs().max() <= (0 if ending == "png" else 3)


def test_a_photo_is_pillows_centre_square(tmp_path):
    photograph().save(tmp_path / "a.png")
    expected = ImageOps.fit(photograph(), (64, 64), Image.Resampling.BILINEAR)
    assert torch.equal(decode(tmp_path / "a.png", 64), pil_to_tensor(expected))


def test_a_large_jpeg_read_at_less_than_its_size_is_as_sharp(tmp_path):
    photograph().resize((1280, 854)).save(tmp_path / "a.jpg", quality=95)
    with Image.open(tmp_path / "a.jpg") as whole:
        expected = pil_to_tensor(ImageOps.fit(whole, (300, 300), Image.Resampling.BILINEAR))
    assert (decode(tmp_path / "a.jpg", 300).float() - expected).abs().mean() < 1.5


def inner_difference(one: torch.Tensor, other: torch.Tensor) -> int:
    """The largest, but for the outermost pixels, where Pillow's filter looks beyond the square and torch's does not."""
    return int((one.int() - other.int())[:, 2:-2, 2:-2].abs().max())


UNREADABLE = {
    "truncated.jpg": lambda whole: whole[: len(whole) // 2],
    "page.jpg": lambda whole: b"<!doctype html><title>404</title>",
    "pointer.jpg": lambda whole: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n",
    "header.jpg": lambda whole: whole[:20],
    "empty.jpg": lambda whole: b"",
}


@every_decoder
@pytest.mark.parametrize("name", UNREADABLE)
def test_an_unreadable_file_is_named(tmp_path, name, jpeg):
    photograph().save(tmp_path / "whole.jpg")
    (tmp_path / name).write_bytes(UNREADABLE[name]((tmp_path / "whole.jpg").read_bytes()))
    with pytest.raises(DataError, match=f"cannot read {re.escape(str(tmp_path / name))} as an image"):
        decode(tmp_path / name, 32, jpeg)


@pytest.mark.parametrize("ending", ["png", "gif", "webp", "tif", "bmp"])
def test_a_cut_file_of_any_format_is_named(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    photograph().resize((200, 100)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=re.escape(str(path))):
        decode(path, 32)


@every_decoder
@pytest.mark.parametrize("ending", ["png", "jpg"])
@pytest.mark.parametrize("loud", [True, False])
def test_an_image_of_too_many_pixels_is_refused(tmp_path, monkeypatch, ending, jpeg, loud):
    """Whatever becomes of Pillow's warning, which is all that it does up to twice its limit."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    put(tmp_path / f"a.{ending}", size=(40, 40))
    warnings.simplefilter("error" if loud else "ignore")  # pytest puts the filters back
    with pytest.raises(DataError, match=rf"a\.{ending}.*1,?000 "):
        decode(tmp_path / f"a.{ending}", 8, jpeg)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.png"):
        decode(tmp_path / "gone.png", 8)


@every_decoder
@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright(tmp_path, orientation, ending, jpeg):
    exif = Image.Exif()
    exif[0x0112] = orientation
    photograph().crop((0, 0, 300, 200)).save(tmp_path / f"turned.{ending}", exif=exif)
    with Image.open(tmp_path / f"turned.{ending}") as turned:
        upright = ImageOps.exif_transpose(turned).convert("RGB")
    expected = pil_to_tensor(ImageOps.fit(upright, (150, 150), Image.Resampling.BILINEAR))
    assert inner_difference(decode(tmp_path / f"turned.{ending}", 150, jpeg), expected) <= 2


@pytest.mark.skipif(find_spec("simplejpeg") is None, reason="simplejpeg is not installed")
@pytest.mark.parametrize("size", [(640, 426), (426, 640), (512, 512), (1200, 800), (2000, 1334)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_simplejpeg_shows_what_pillow_shows(tmp_path, size, mode):
    """Even margins, so that both have the same centre; of large ones both decode a half or a quarter."""
    photograph().convert(mode).resize(size).save(tmp_path / "a.jpg", quality=90)
    one, other = decode(tmp_path / "a.jpg", 256, "simplejpeg"), decode(tmp_path / "a.jpg", 256)
    assert inner_difference(one, other) <= 2
    assert (one.float() - other.float()).abs().mean() < 0.25


@pytest.mark.skipif(find_spec("simplejpeg") is None, reason="simplejpeg is not installed")
def test_simplejpeg_is_what_decodes_jpeg_and_pillow_the_rest(tmp_path, monkeypatch):
    import simplejpeg

    def refused(*_, **__):
        raise RuntimeError("simplejpeg was asked")

    photograph().save(tmp_path / "a.jpg")
    halves("CMYK", (0, 255, 255, 0), (255, 0, 255, 0)).save(tmp_path / "cmyk.jpg")
    put(tmp_path / "a.png")
    monkeypatch.setattr(simplejpeg, "decode_jpeg", refused)
    for name in ("cmyk.jpg", "a.png"):
        decode(tmp_path / name, 8, "simplejpeg")
    decode(tmp_path / "a.jpg", 8, "pillow")
    with pytest.raises(DataError, match="simplejpeg was asked"):
        decode(tmp_path / "a.jpg", 8, "simplejpeg")


def test_without_simplejpeg_pillow_decodes_and_asking_for_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("reptk.data.decode.find_spec", lambda name: None)
    assert decoder("auto") == "pillow"
    assert versions_of("pillow").startswith("pillow ")
    with pytest.raises(EnvironmentProblem, match=re.escape("pip install 'reptk[jpeg]'")):
        decoder("simplejpeg")


def test_a_damaged_note_of_the_camera_does_not_hide_the_picture(tmp_path):
    photograph().save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff broken")
    photograph().save(tmp_path / "b.jpg")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.equal(decode(tmp_path / "a.jpg", 32), decode(tmp_path / "b.jpg", 32))


def test_formats_that_are_not_asked_for_stay_shut(tmp_path):
    """A file of another format under a name that is, which Pillow would open by its content."""
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


def test_threads_leave_the_filters_of_warnings_alone(tmp_path):
    """Palettes with transparent bytes, of which Pillow warns, decoded by several at once."""
    for number in range(12):
        palette().save(tmp_path / f"{number}.png", transparency=bytes([0, 255]))
    split = folder(str(tmp_path), size=8).train
    before = list(warnings.filters)
    for _ in range(5):
        list(Loader(split, batch_size=12, seed=0, workers=4).batches(0, 1))
    assert warnings.filters == before
