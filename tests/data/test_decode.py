"""One encoded image to one square: every kind of image as viewers show it, by every decoder; bad files are named."""

import io
import re
import warnings
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps
from PIL.PngImagePlugin import PngInfo
from torchvision.transforms.v2.functional import pil_to_tensor

from image_files import BLUE, GREEN, RED, WHITE, photograph, write_image
from reptk.core.errors import DataError, EnvironmentProblem
from reptk.data import Loader, folder
from reptk.data.decode import (
    FORMATS,
    PixelOptions,
    decode,
    decode_into,
    decoder,
    versions_of,
)

needs_simplejpeg = pytest.mark.skipif(find_spec("simplejpeg") is None, reason="simplejpeg is not installed")
every_decoder = pytest.mark.parametrize("jpeg", ["pillow", pytest.param("simplejpeg", marks=needs_simplejpeg)])


def halves(mode: str, left: object, right: object, size: tuple[int, int] = (40, 40)) -> Image.Image:
    image = Image.new(mode, size, left)
    image.paste(right, (size[0] // 2, 0, *size))
    return image


def sixteen_bit(left: int, right: int) -> Image.Image:
    row = np.array([[left] * 20 + [right] * 20], dtype=np.uint16)
    return Image.fromarray(np.repeat(row, 40, axis=0))


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


def assert_column(column: torch.Tensor, color: tuple[int, ...], atol: int) -> None:
    expected = torch.tensor(color)[:, None].expand(3, 8)
    torch.testing.assert_close(column.int(), expected.int(), atol=atol, rtol=0)


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


def test_a_photograph_is_pillows_center_square(tmp_path):
    photograph().save(tmp_path / "a.png")
    expected = ImageOps.fit(photograph(), (64, 64), Image.Resampling.BILINEAR)
    assert torch.equal(decode(tmp_path / "a.png", 64), pil_to_tensor(expected))


def test_a_large_jpeg_decoded_at_a_fraction_of_its_size_is_as_sharp(tmp_path):
    photograph().resize((1280, 854)).save(tmp_path / "a.jpg", quality=95)
    with Image.open(tmp_path / "a.jpg") as image:
        expected = pil_to_tensor(ImageOps.fit(image, (300, 300), Image.Resampling.BILINEAR))
    assert (decode(tmp_path / "a.jpg", 300).float() - expected).abs().mean() < 1.5


# Bytes instead of files


@every_decoder
@pytest.mark.parametrize("extension", ["jpg", "png"])
def test_bytes_are_decoded_like_their_file(tmp_path, extension, jpeg):
    path = tmp_path / f"a.{extension}"
    photograph().save(path)
    from_file, from_bytes = np.empty((2, 48, 48, 3), dtype=np.uint8)
    decode_into(path, from_file, jpeg)
    decode_into(path.read_bytes(), from_bytes, jpeg)
    assert np.array_equal(from_file, from_bytes)
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
        decode_into(b"<!doctype", np.empty((8, 8, 3), dtype=np.uint8), "pillow", name=name)


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


@every_decoder
@pytest.mark.parametrize("image_format", FUZZED_FORMATS)
def test_what_pillow_refuses_is_refused(image_format, jpeg):
    """120 files with a few flipped bits, zeroed bytes or a missing end: a whole image, or an error that names the file."""
    buffer = io.BytesIO()
    photograph().resize((96, 64)).save(buffer, image_format)
    generator = np.random.default_rng(0)
    num_refused = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(120):
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


# Colors and ranges


@every_decoder
@pytest.mark.parametrize("extension", ["jpg", "png", "webp"])
def test_colors_are_converted_to_srgb_by_the_profile(tmp_path, extension, jpeg):
    """The same picture in sRGB, and in a space with other primaries and its profile."""
    path = tmp_path / f"profile.{extension}"
    smooth = photograph().resize((12, 8)).resize((300, 200), Image.Resampling.BICUBIC)
    wide = wide_profile()
    to_wide = ImageCms.buildTransform(
        ImageCms.createProfile("sRGB"), ImageCms.ImageCmsProfile(io.BytesIO(wide)), "RGB", "RGB"
    )
    options = {"lossless": True} if extension == "webp" else {"quality": 100}
    ImageCms.applyTransform(smooth, to_wide).save(path, icc_profile=wide, **options)
    expected = pil_to_tensor(ImageOps.fit(smooth, (64, 64), Image.Resampling.BILINEAR))
    difference = (decode(path, 64, jpeg).int() - expected.int()).abs().float()
    assert difference.mean() < 1.5
    # Without the conversion.
    with Image.open(path) as image:
        unconverted = pil_to_tensor(ImageOps.fit(image.convert("RGB"), (64, 64), Image.Resampling.BILINEAR))
    assert (unconverted.int() - expected.int()).abs().float().mean() > 4


def wide_profile() -> bytes:
    """The profile of a color space whose red and green are sRGB's green and red: sRGB's with two tags exchanged."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    position_of = {}
    for number in range(int.from_bytes(profile[128:132], "big")):
        tag = 132 + 12 * number
        position_of[bytes(profile[tag : tag + 4])] = tag + 4
    red, green, description = position_of[b"rXYZ"], position_of[b"gXYZ"], position_of[b"desc"]
    profile[red : red + 8], profile[green : green + 8] = profile[green : green + 8], profile[red : red + 8]
    # Another name than sRGB.
    start = int.from_bytes(profile[description : description + 4], "big")
    size = int.from_bytes(profile[description + 4 : description + 8], "big")
    text = profile[start : start + size]
    profile[start : start + size] = text.replace("sRGB".encode("utf-16-be"), "wide".encode("utf-16-be")).replace(
        b"sRGB", b"wide"
    )
    return bytes(profile)


@pytest.mark.parametrize("profile", [b"no profile", b"\0" * 200])
def test_a_damaged_profile_is_ignored(tmp_path, profile):
    photograph().save(tmp_path / "a.png", icc_profile=profile)
    photograph().save(tmp_path / "b.png")
    assert torch.equal(decode(tmp_path / "a.png", 32), decode(tmp_path / "b.png", 32))


def test_a_range_makes_12_bit_pictures_as_bright_as_8_bit_ones(tmp_path):
    sixteen_bit(0, 4095).save(tmp_path / "a.png")
    square = decode(tmp_path / "a.png", 8, options=PixelOptions(range=(0, 4095)))
    assert_column(square[:, :, 0], (0, 0, 0), 0)
    assert_column(square[:, :, -1], WHITE, 0)
    with pytest.warns(UserWarning, match=r"end at 4,095 or below are nearly black; .* 12 bits: data\.range=\[0,4095\]"):
        assert decode(tmp_path / "a.png", 8).max() == 16


def test_transparent_pixels_show_the_background(tmp_path):
    halves("RGBA", (*RED, 0), (*BLUE, 255)).save(tmp_path / "a.png")
    square = decode(tmp_path / "a.png", 8, options=PixelOptions(background="lime"))
    assert_column(square[:, :, 0], (0, 255, 0), 0)
    assert_column(square[:, :, -1], BLUE, 0)


@pytest.mark.parametrize(
    "options", [{"range": (5, 5)}, {"range": (-1, 5)}, {"range": (0, 70000)}, {"background": "no color"}]
)
def test_unsuitable_options_are_refused(options):
    with pytest.raises(ValueError, match=r"range must be two values|unknown color"):
        PixelOptions(**options)


@pytest.mark.parametrize("compressed", [False, True])
def test_long_text_in_a_png_is_no_obstacle(tmp_path, compressed):
    text = PngInfo()
    text.add_text("comment", "a" * 3_000_000, zip=compressed)
    photograph().save(tmp_path / "a.png", pnginfo=text)
    photograph().save(tmp_path / "b.png")
    assert torch.equal(decode(tmp_path / "a.png", 32), decode(tmp_path / "b.png", 32))


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
    expected = pil_to_tensor(ImageOps.fit(upright, (150, 150), Image.Resampling.BILINEAR))
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


def test_without_simplejpeg_pillow_decodes_and_requesting_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("reptk.data.decode.find_spec", lambda name: None)
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


# Profiles of gray images, and of images with transparent pixels


def gray_profile() -> bytes:
    """A profile of gray images with linear light: sRGB's of three channels would not do."""
    tags = {
        b"desc": b"desc" + bytes(4) + (5).to_bytes(4, "big") + b"gray\0" + bytes(78),
        b"wtpt": b"XYZ " + bytes(4) + bytes.fromhex("0000f6d6000100000000d32d"),
        b"kTRC": b"curv" + bytes(4) + bytes(4),
    }
    table, data = len(tags).to_bytes(4, "big"), b""
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + (128 + 4 + 12 * len(tags) + len(data)).to_bytes(4, "big") + len(content).to_bytes(4, "big")
        data += content
    body = table + data
    head = (128 + len(body)).to_bytes(4, "big") + bytes(4) + bytes.fromhex("02400000") + b"mntrGRAYXYZ "
    head += bytes(12) + b"acsp" + bytes(28) + bytes.fromhex("0000f6d6000100000000d32d")
    return head + bytes(128 - len(head)) + body


@every_decoder
def test_a_gray_profile_is_used_by_every_decoder(tmp_path, jpeg):
    Image.new("L", (40, 40), 64).save(tmp_path / "a.jpg", icc_profile=gray_profile(), quality=95)
    square = decode(tmp_path / "a.jpg", 8, jpeg)
    # Linear light of a quarter is 137 in sRGB.
    assert abs(int(square[0, 4, 4]) - 137) <= 3
    assert square.amax() - square.amin() <= 2


def test_a_background_is_not_changed_by_a_profile(tmp_path):
    image = halves("RGBA", (*RED, 0), (*BLUE, 255))
    image.save(tmp_path / "a.png", icc_profile=wide_profile())
    square = decode(tmp_path / "a.png", 8, options=PixelOptions(background="#ff8000"))
    assert_column(square[:, :, 0], (255, 128, 0), 0)


@pytest.mark.parametrize("extra", [bytes(100_000), b"text behind the end"])
def test_what_follows_the_end_of_a_png_is_ignored(tmp_path, extra):
    photograph().save(tmp_path / "a.png")
    expected = decode(tmp_path / "a.png", 8)
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes() + extra)
    assert torch.equal(decode(tmp_path / "a.png", 8), expected)
