"""Image files written for the tests of data sets, and what is read from them."""

import io
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from reptk.data import Data, Split

needs_simplejpeg = pytest.mark.skipif(find_spec("simplejpeg") is None, reason="simplejpeg is not installed")
every_decoder = pytest.mark.parametrize("jpeg", ["pillow", pytest.param("simplejpeg", marks=needs_simplejpeg)])

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def fetch_all(split: Split) -> Tensor:
    return split.images.fetch(torch.arange(len(split)))


def same_data(data: Data, other: Data) -> bool:
    """Whether classes, labels and pixels of all splits are equal."""
    if data.classes != other.classes:
        return False
    pairs = [(data.train, other.train), (data.bank, other.bank), (data.query, other.query)]
    return all(torch.equal(a.labels, b.labels) and torch.equal(fetch_all(a), fetch_all(b)) for a, b in pairs)


def encode_png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def write_image(path: Path, color: tuple[int, ...] = RED, size: tuple[int, int] = (10, 8), **options: object) -> Path:
    """Write an image of one color; the options are those of `Image.save`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, **options)
    return path


def write_images(root: Path, **counts: int) -> Path:
    """Write so many images, 00.png onwards, into folders with these names; `__` stands for a slash."""
    for name, count in counts.items():
        for number in range(count):
            write_image(root / name.replace("__", "/") / f"{number:02}.png")
    return root


def relative_paths(split: Split, root: Path) -> list[str]:
    return [str(split.images.path(number).relative_to(root)) for number in range(len(split))]


def photograph() -> Image.Image:
    [package] = find_spec("sklearn").submodule_search_locations
    return Image.open(Path(package) / "datasets" / "images" / "china.jpg")


def halves(mode: str, left: object, right: object, size: tuple[int, int] = (40, 40)) -> Image.Image:
    image = Image.new(mode, size, left)
    image.paste(right, (size[0] // 2, 0, *size))
    return image


def sixteen_bit(left: int, right: int) -> Image.Image:
    row = np.array([[left] * 20 + [right] * 20], dtype=np.uint16)
    return Image.fromarray(np.repeat(row, 40, axis=0))


def assert_column(column: torch.Tensor, color: tuple[int, ...], atol: int) -> None:
    expected = torch.tensor(color)[:, None].expand(3, 8)
    torch.testing.assert_close(column.int(), expected.int(), atol=atol, rtol=0)
