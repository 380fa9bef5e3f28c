"""Colors and ranges: profiles, cameras of fewer bits, and what is behind transparent pixels."""

import io

import pytest
import torch
from PIL import Image, ImageCms, ImageOps
from torchvision.transforms.v2.functional import pil_to_tensor

from image_files import BLUE, RED, WHITE, assert_column, every_decoder, halves, photograph, sixteen_bit
from reptk.data.decoding.decode import decode
from reptk.data.decoding.pixel_options import PixelOptions


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
    with pytest.raises(ValueError, match=r"range must be two values|background must be"):
        PixelOptions(**options)


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
