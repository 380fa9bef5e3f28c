"""Thumbnails of thousands of images in one picture, as fine as its number of bytes allows."""

import math
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from reptk.data import Split
from reptk.report.pictures import encoded, fetched

CELLS_PX = (96, 80, 64, 48, 40, 32, 24, 16, 8)
"""Sides of a thumbnail's cell: whole blocks of a JPEG, so that neighbours do not bleed into each other."""
MOST_PIXELS = 16 << 20
"""What phones still show as one picture."""
QUALITIES = (82, 70, 55, 40)


@dataclass(frozen=True)
class Atlas:
    """One picture of (rows x columns) cells; in cell n, from its upper left corner, the n-th thumbnail.

    Args:
        uri: the picture.
        cell: side of a cell.
        columns: cells in a row.
        width, height: of a thumbnail, at most `cell`.
        missing: numbers of the cells whose image cannot be read.
    """

    uri: str
    cell: int
    columns: int
    width: int
    height: int
    missing: tuple[int, ...]


def atlas_of(split: Split, numbers: Tensor, most_bytes: int) -> Atlas:
    """The images `numbers` of a split, in as many pixels and bits as fit into `most_bytes` of the page."""
    cells = [cell for cell in CELLS_PX if len(numbers) * cell**2 <= MOST_PIXELS] or [CELLS_PX[-1]]
    thumbnails, size, missing = _thumbnails(split, numbers, cells)
    first = next(cell for cell in reversed(CELLS_PX) if cell >= max(size))
    columns = math.ceil(math.sqrt(len(numbers)))
    whole = _sheet(thumbnails, first, columns)
    uri = ""
    for cell in [cell for cell in CELLS_PX if cell <= first]:
        scaled = tuple(max(1, round(side * cell / first)) for side in size)
        picture = whole if cell == first else _resized(whole, cell / first)
        for quality in QUALITIES:
            uri = encoded(picture, "JPEG", quality=quality, optimize=True)
            if len(uri) <= most_bytes:
                return Atlas(uri, cell, columns, *scaled, missing)
    return Atlas(uri, CELLS_PX[-1], columns, *scaled, missing)


def _thumbnails(split: Split, numbers: Tensor, cells: list[int]) -> tuple[Tensor, tuple[int, int], tuple[int, ...]]:
    """(n, 3, h, w) uint8, their (w, h) and which are missing; never larger than the images themselves."""
    rows: list[Tensor | None] = []
    for block in fetched(split, numbers):
        rows += [None if image is None else _small(image, cells[0]) for image in block]
    shape = next((row.shape for row in rows if row is not None), torch.Size((3, 1, 1)))
    absent = torch.full(shape, 128, dtype=torch.uint8)
    missing = tuple(number for number, row in enumerate(rows) if row is None or row.shape != shape)
    kept = [absent if row is None or row.shape != shape else row for row in rows]
    return torch.stack(kept), (shape[2], shape[1]), missing


def _small(image: Tensor, side: int) -> Tensor:
    height, width = image.shape[-2:]
    scale = side / max(height, width)
    if scale >= 1:
        return image
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    made = functional.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0]
    return made.round().clamp(0, 255).to(torch.uint8)


def _sheet(thumbnails: Tensor, cell: int, columns: int) -> Image.Image:
    """The thumbnails in their cells, whose rest repeats the last row and column."""
    count, _, height, width = thumbnails.shape
    rows = math.ceil(count / columns)
    padded = functional.pad(thumbnails.float(), (0, cell - width, 0, cell - height), mode="replicate").to(torch.uint8)
    sheet = torch.zeros(rows * columns, 3, cell, cell, dtype=torch.uint8)
    sheet[:count] = padded
    grid = sheet.view(rows, columns, 3, cell, cell).permute(0, 3, 1, 4, 2).reshape(rows * cell, columns * cell, 3)
    picture = Image.fromarray(grid.contiguous().numpy())
    return picture.convert("L") if bool((thumbnails == thumbnails[:, :1]).all()) else picture


def _resized(picture: Image.Image, scale: float) -> Image.Image:
    size = (round(picture.width * scale), round(picture.height * scale))
    return picture.resize(size, Image.Resampling.BOX)
