"""A sprite atlas: thumbnails of thousands of images in one picture, with the best quality that a number of bytes allows."""

import math
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from reptk.data import Split
from reptk.report.data_uri import encode_data_uri
from reptk.report.run_images import read_images

CELL_SIDES_PX = (96, 80, 64, 48, 40, 32, 24, 16, 8)
"""Multiples of 8 px, the block of a JPEG, so that thumbnails do not bleed into each other."""
MAX_PIXELS = 16 << 20
"""Phones do not show larger pictures."""
JPEG_QUALITIES = (82, 70, 55, 40)
MISSING_GRAY = 128


@dataclass(frozen=True)
class ThumbnailAtlas:
    """A picture that consists of square cells. Thumbnail n lies in the upper left corner of cell n, counted by rows.

    Args:
        uri: the picture as a data URI.
        cell: side of a cell in pixels.
        columns: cells in a row.
        width, height: of a thumbnail in pixels, at most `cell`.
        missing: the thumbnails whose images cannot be read.
    """

    uri: str
    cell: int
    columns: int
    width: int
    height: int
    missing: tuple[int, ...]


@dataclass(frozen=True)
class _Thumbnails:
    """`images` (n, 3, h, w) uint8, gray where `missing` says so."""

    images: Tensor
    missing: tuple[int, ...]

    @property
    def width(self) -> int:
        return self.images.shape[3]

    @property
    def height(self) -> int:
        return self.images.shape[2]


def build_atlas(split: Split, numbers: Tensor, max_bytes: int) -> ThumbnailAtlas:
    """Return the atlas of the images `numbers` (n,): the largest cells, then the best quality, within `max_bytes`.

    An atlas of the smallest cells and the lowest quality is returned even if it is larger.
    """
    thumbnails = _read_thumbnails(split, numbers, _largest_cell(len(numbers)))
    longest_side = max(thumbnails.width, thumbnails.height)
    # The smallest cell that holds the thumbnails, which may be images smaller than the largest cell.
    first_cell = min(cell for cell in CELL_SIDES_PX if cell >= longest_side)
    # About square: browsers limit the length of either side.
    columns = math.ceil(math.sqrt(len(numbers)))
    full_sheet = _draw_sheet(thumbnails.images, first_cell, columns)
    for cell in CELL_SIDES_PX:
        if cell > first_cell:
            continue
        sheet = full_sheet
        if cell < first_cell:
            sheet = _shrink(full_sheet, cell / first_cell)
        # Quality is given up before size: a coarse thumbnail shows more than a small one.
        for quality in JPEG_QUALITIES:
            uri = encode_data_uri(sheet, "JPEG", quality=quality, optimize=True)
            atlas = ThumbnailAtlas(
                uri=uri,
                cell=cell,
                columns=columns,
                width=max(1, round(thumbnails.width * cell / first_cell)),
                height=max(1, round(thumbnails.height * cell / first_cell)),
                missing=thumbnails.missing,
            )
            if len(uri) <= max_bytes:
                return atlas
    return atlas


def _largest_cell(num_images: int) -> int:
    for cell in CELL_SIDES_PX:
        if num_images * cell**2 <= MAX_PIXELS:
            return cell
    return CELL_SIDES_PX[-1]


def _read_thumbnails(split: Split, numbers: Tensor, max_side_px: int) -> _Thumbnails:
    """Return thumbnails of one size, never larger than the images themselves."""
    thumbnails = []
    for image in read_images(split, numbers):
        thumbnails.append(None if image is None else _reduce(image, max_side_px))
    # The shape of the first readable one; without any, one pixel stands for each.
    shape = (3, 1, 1)
    for thumbnail in thumbnails:
        if thumbnail is not None:
            shape = thumbnail.shape
            break
    missing = []
    for position, thumbnail in enumerate(thumbnails):
        if thumbnail is None or thumbnail.shape != shape:
            # All thumbnails have one size, as the images of a data set do.
            missing.append(position)
            thumbnails[position] = torch.full(shape, MISSING_GRAY, dtype=torch.uint8)
    return _Thumbnails(torch.stack(thumbnails), tuple(missing))


def _reduce(image: Tensor, max_side_px: int) -> Tensor:
    """Return (3, H, W) uint8 with its longest side reduced to `max_side_px`; a smaller image as it is."""
    height, width = image.shape[-2:]
    scale = max_side_px / max(height, width)
    if scale >= 1:
        return image
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    reduced = functional.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0]
    return reduced.round().clamp(0, 255).to(torch.uint8)


def _draw_sheet(thumbnails: Tensor, cell: int, columns: int) -> Image.Image:
    """Return the picture of all cells; what a thumbnail leaves of its cell repeats the thumbnail's last row and column."""
    count, _, height, width = thumbnails.shape
    rows = math.ceil(count / columns)
    # A hard edge within a block of the JPEG would ring into the thumbnail.
    padding = (0, cell - width, 0, cell - height)
    cells = torch.zeros(rows * columns, 3, cell, cell, dtype=torch.uint8)
    cells[:count] = functional.pad(thumbnails.float(), padding, mode="replicate").to(torch.uint8)
    grid = cells.view(rows, columns, 3, cell, cell).permute(0, 3, 1, 4, 2)
    sheet = Image.fromarray(grid.reshape(rows * cell, columns * cell, 3).contiguous().numpy())
    is_gray = bool((thumbnails == thumbnails[:, :1]).all())
    if is_gray:
        return sheet.convert("L")
    return sheet


def _shrink(sheet: Image.Image, scale: float) -> Image.Image:
    size = (round(sheet.width * scale), round(sheet.height * scale))
    # BOX averages within cells alone; wider filters would mix neighboring thumbnails.
    return sheet.resize(size, Image.Resampling.BOX)
