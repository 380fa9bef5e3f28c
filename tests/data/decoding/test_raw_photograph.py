"""Raw photographs: developed where rawpy is installed, and never mistaken for the previews within them."""

import struct
from pathlib import Path

import pytest
from PIL import Image, TiffImagePlugin

from reptk.core.errors import DataError
from reptk.data.decoding import raw_photograph
from reptk.data.decoding.decode import decode
from reptk.data.decoding.pixel_options import PixelOptions
from reptk.data.decoding.raw_photograph import HAS_RAW, is_raw

needs_rawpy = pytest.mark.skipif(not HAS_RAW, reason="rawpy is not installed")

BYTE, ASCII, SHORT, LONG, RATIONAL, SIGNED_RATIONAL = 1, 2, 3, 4, 5, 10
FORMATS = {BYTE: "B", ASCII: "B", SHORT: "H", LONG: "I", RATIONAL: "I", SIGNED_RATIONAL: "i"}


def write_dng(
    path: Path,
    left: tuple[int, int, int],
    right: tuple[int, int, int],
    side_px: int = 64,
    neutral_red: int = 100,
) -> Path:
    """Write a DNG of a Bayer sensor whose halves have these values of red, green and blue, of 0 to 4095.

    Gray things have `neutral_red` percent as much red as green.
    """
    rows = []
    for y in range(side_px):
        row = []
        for x in range(side_px):
            color = left if x < side_px // 2 else right
            row.append(color[y % 2 + x % 2])  # red, green; green, blue
        rows.append(struct.pack(f"<{side_px}H", *row))
    pixels = b"".join(rows)
    # From XYZ to linear sRGB, which are this camera's colors.
    matrix = [32406, -15372, -4986, -9689, 18758, 415, 557, -2040, 10570]
    entries = [
        (254, LONG, [0]),
        (256, LONG, [side_px]),
        (257, LONG, [side_px]),
        (258, SHORT, [16]),
        (259, SHORT, [1]),
        (262, SHORT, [32803]),
        (271, ASCII, list(b"reptk\0")),
        (272, ASCII, list(b"test\0")),
        (273, LONG, [8]),
        (277, SHORT, [1]),
        (278, LONG, [side_px]),
        (279, LONG, [len(pixels)]),
        (33421, SHORT, [2, 2]),
        (33422, BYTE, [0, 1, 1, 2]),
        (50706, BYTE, [1, 4, 0, 0]),
        (50708, ASCII, list(b"reptk test\0")),
        (50717, LONG, [4095]),
        (50721, SIGNED_RATIONAL, [value for numerator in matrix for value in (numerator, 10_000)]),
        (50728, RATIONAL, [neutral_red, 100, 1, 1, 1, 1]),
        (50778, SHORT, [21]),
    ]
    start = 8 + len(pixels)
    place_of_values = start + 2 + 12 * len(entries) + 4
    directory, values = struct.pack("<H", len(entries)), b""
    for tag, kind, numbers in entries:
        encoded = struct.pack(f"<{len(numbers)}{FORMATS[kind]}", *numbers)
        count = len(numbers) // (2 if kind in (RATIONAL, SIGNED_RATIONAL) else 1)
        if len(encoded) > 4:
            field = struct.pack("<I", place_of_values + len(values))
            values += encoded + b"\0" * (len(encoded) % 2)
        else:
            field = encoded.ljust(4, b"\0")
        directory += struct.pack("<HHI", tag, kind, count) + field
    path.write_bytes(b"II*\0" + struct.pack("<I", start) + pixels + directory + b"\0" * 4 + values)
    return path


@needs_rawpy
@pytest.mark.parametrize("jpeg", ["pillow", "auto"])
def test_a_raw_photograph_is_developed(tmp_path: Path, jpeg: str) -> None:
    path = write_dng(tmp_path / "a.dng", left=(4000, 200, 200), right=(200, 200, 4000))
    pixels = decode(path, 32, jpeg).int()
    assert pixels.shape == (3, 32, 32)
    left, right = pixels[:, 16, 6].tolist(), pixels[:, 16, 26].tolist()
    assert left[0] > max(left[1:]) + 100
    assert right[2] > max(right[:2]) + 100


@needs_rawpy
def test_the_white_balance_is_that_of_the_camera(tmp_path: Path) -> None:
    path = write_dng(tmp_path / "a.dng", left=(1000, 2000, 2000), right=(500, 1000, 1000), neutral_red=50)
    red, green, blue = decode(path, 32)[:, 16, 6].tolist()
    assert max(red, green, blue) - min(red, green, blue) <= 3


@needs_rawpy
def test_a_large_raw_photograph_is_developed_at_half_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = write_dng(tmp_path / "a.dng", left=(4000, 200, 200), right=(200, 200, 4000), side_px=128).read_bytes()
    assert raw_photograph.open_raw(content, 10**6).size == (128, 128)
    monkeypatch.setattr(raw_photograph, "MIN_HALF_SIDE_PX", 64)
    half = raw_photograph.open_raw(content, 10**6)
    assert half.size == (64, 64)
    red, green, blue = half.getpixel((16, 32))
    assert red > max(green, blue) + 100


@needs_rawpy
def test_damaged_and_large_raw_photographs_are_refused(tmp_path: Path) -> None:
    path = write_dng(tmp_path / "a.dng", left=(4000, 200, 200), right=(200, 200, 4000))
    with pytest.raises(DataError, match=r"64 x 64 pixels are more than 1,000, the limit \(data\.max_pixels\)"):
        decode(path, 16, options=PixelOptions(max_pixels=1000))
    path.write_bytes(b"FUJIFILMCCD-RAW 0201" + b"\0" * 500)
    with pytest.raises(DataError, match=r"cannot read .*a\.dng as an image"):
        decode(path, 16)


def test_without_rawpy_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw_photograph, "HAS_RAW", False)
    # By any name: Pillow would read the preview.
    path = write_dng(tmp_path / "a.tif", left=(4000, 200, 200), right=(200, 200, 4000))
    with pytest.raises(DataError, match=r"it is a raw photograph; to read these: pip install 'reptk\[raw\]'"):
        decode(path, 16)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"FUJIFILMCCD-RAW 0201", True),
        (b"II*\0\x10\0\0\0CR\2\0", True),
        (b"\0\0\0\x18ftypcrx \0", True),
        (b"IIRO\x08\0\0\0", True),
        (b"IIU\0\x08\0\0\0", True),
        (b"II*\0\xff\xff\xff\xff", False),
        (b"II*\0", False),
        (b"", False),
        (b"\xff\xd8\xff\xe0", False),
        (b"\0\0\0\x18ftypheic", False),
    ],
)
def test_raw_photographs_are_recognized_by_their_content(content: bytes, expected: bool) -> None:
    assert is_raw(content) == expected


@pytest.mark.parametrize(("tags", "expected"), [((), False), ((271,), False), ((330,), False), ((271, 330), True)])
def test_a_tiff_of_a_scanner_is_no_raw_photograph(tags: tuple[int, ...], expected: bool, tmp_path: Path) -> None:
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for tag in tags:
        info[tag] = "maker" if tag == 271 else 8
    path = tmp_path / "a.tif"
    Image.new("RGB", (20, 20), (255, 0, 0)).save(path, tiffinfo=info)
    assert is_raw(path.read_bytes()) == expected
    if not expected:
        assert decode(path, 8)[:, 4, 4].tolist() == [255, 0, 0]
