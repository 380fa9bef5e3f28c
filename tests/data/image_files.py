"""Image files made for the tests of data, and what is read back from them."""

from importlib.util import find_spec
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from reptk.data import Split

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def fetched(split: Split) -> Tensor:
    return split.images.fetch(torch.arange(len(split)))


def put(path: Path, colour: tuple[int, ...] = RED, size: tuple[int, int] = (10, 8), **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)
    return path


def fill(root: Path, **counts: int) -> Path:
    """`counts` images in folders of these names (`__` for a level down), 00.png onwards."""
    for name, count in counts.items():
        for number in range(count):
            put(root / name.replace("__", "/") / f"{number:02}.png")
    return root


def paths(split: Split, root: Path) -> list[str]:
    return [str(split.images.path(number).relative_to(root)) for number in range(len(split))]


def photograph() -> Image.Image:
    [home] = find_spec("sklearn").submodule_search_locations
    return Image.open(Path(home) / "datasets" / "images" / "china.jpg")
