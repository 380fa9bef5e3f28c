"""A contact sheet: rows of images with hard pixels, labels beside and headings above them. Drawn by Pillow alone."""

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST_PX, LARGEST_PX = 128, 256
"""Side of a cell: smaller images are enlarged to fill it, larger ones reduced to fit, by whole factors."""

GROUND, HAIRLINE, QUIET, INK = "#f7f7f5", "#d9d9d6", "#73736f", "#1f1f1d"

Label = tuple[str, str]
"""What to read first, and what stands below it in grey."""


class Column(NamedTuple):
    """One image in every row, all of one size: (n, 3, H, W) uint8."""

    heading: str
    pixels: "Tensor"


def draw(
    title: str, facts: Sequence[tuple[str, str]], labels: Sequence[Label], columns: Sequence[Column]
) -> Image.Image:
    """A contact sheet: title and facts, then a row for every label and a column for every `Column`.

    A column is enlarged by a whole factor with hard pixels, so that each can be seen; images larger than a cell are
    reduced by one.
    """
    cell = min(max(SMALLEST_PX, *(_side(column) for column in columns)), LARGEST_PX)
    style = Style(cell / SMALLEST_PX)
    tiles = [_tiles(column, cell) for column in columns]
    lefts, width = _across(labels, columns, tiles, style, cell)
    lines = [(key, _wrapped(drawable(value), style.text, width - style.margin - lefts[0])) for key, value in facts]
    headings_top = style.margin + style.px(52) + style.px(19) * sum(len(values) for _, values in lines)
    first_row, pitch = headings_top + style.px(38), max(column[0].height for column in tiles) + style.gap

    sheet = Image.new("RGB", (width, first_row + len(labels) * pitch - style.gap + style.margin), GROUND)
    pen = ImageDraw.Draw(sheet)
    _draw_head(pen, style, drawable(title), lines, lefts[0])
    for left, column, images in zip(lefts, columns, tiles, strict=True):
        pen.text((left, headings_top), column.heading, INK, style.text)
        pen.text((left, headings_top + style.px(17)), _scale(column, cell), QUIET, style.small)
        for row, image in enumerate(images):
            _place(sheet, pen, image, left, first_row + row * pitch)
    for row, (name, note) in enumerate(labels):
        top = first_row + row * pitch - style.px(2)
        pen.text((style.margin, top), _cut(name, style.text, cell), INK, style.text)
        pen.text((style.margin, top + (style.px(17) if name else 0)), note, QUIET, style.small)
    return sheet


class Style:
    """Letters and gaps, `scale` times as large as they are beside the smallest cells."""

    def __init__(self, scale: float) -> None:
        self.scale = scale
        self.small, self.text, self.large = (ImageFont.load_default(self.px(size)) for size in (12, 13, 20))
        self.margin, self.gap = self.px(28), self.px(8)

    def px(self, length: float) -> int:
        return round(length * self.scale)


def _across(
    labels: Sequence[Label], columns: Sequence[Column], tiles: list[list[Image.Image]], style: Style, cell: int
) -> tuple[list[int], int]:
    """Where each column begins, and how wide the sheet is. The views keep a little away from the image."""
    named = max(max(style.text.getlength(name), style.small.getlength(note)) for name, note in labels)
    left = style.margin + round(min(named, cell)) + 2 * style.gap
    lefts = []
    for column, images in zip(columns, tiles, strict=True):
        lefts.append(left)
        heading = max(style.text.getlength(column.heading), style.small.getlength(_scale(column, cell)))
        left += max(images[0].width, round(heading)) + (3 if len(lefts) == 1 else 1) * style.gap
    return lefts, max(left - style.gap + style.margin, style.px(480))


def _draw_head(
    pen: ImageDraw.ImageDraw, style: Style, title: str, lines: list[tuple[str, list[str]]], left: int
) -> None:
    pen.text((style.margin, style.margin), title, INK, style.large, anchor="lt")
    top = style.margin + style.px(34)
    for key, values in lines:
        pen.text((style.margin, top), key, QUIET, style.text)
        for value in values:
            pen.text((left, top), value, INK, style.text)
            top += style.px(19)


def _place(sheet: Image.Image, pen: ImageDraw.ImageDraw, image: Image.Image, left: int, top: int) -> None:
    pen.rectangle((left - 1, top - 1, left + image.width, top + image.height), outline=HAIRLINE)
    sheet.paste(image, (left, top))


def _tiles(column: Column, cell: int) -> list[Image.Image]:
    times, parts = _factor(column, cell)
    images = [Image.fromarray(image) for image in column.pixels.permute(0, 2, 3, 1).contiguous().numpy()]
    if parts > 1:
        return [image.reduce(parts) for image in images]
    return [image.resize((times * image.width, times * image.height), Image.Resampling.NEAREST) for image in images]


def _factor(column: Column, cell: int) -> tuple[int, int]:
    """How many times images are enlarged, and by how much they are divided; one of the two is 1."""
    return max(1, cell // _side(column)), max(1, -(-_side(column) // cell))


def _side(column: Column) -> int:
    return max(column.pixels.shape[-2:])


def _scale(column: Column, cell: int) -> str:
    times, parts = _factor(column, cell)
    shown = f",  x{times}" if times > 1 else f",  1/{parts}" if parts > 1 else ""
    return size_of(column.pixels) + shown


def size_of(images: "Tensor") -> str:
    """Of (n, 3, H, W) images, in words."""
    height, width = images.shape[-2:]
    return f"{width} px" if width == height else f"{width} x {height} px"


def _cut(line: str, font: Any, width: float) -> str:
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(f"{line}...") > width:
        line = line[:-1].rstrip()
    return f"{line}..."


def _wrapped(line: str, font: Any, width: float) -> list[str]:
    lines: list[str] = []
    for word in line.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return [_cut(line, font, width) for line in lines]


def drawable(text: str) -> str:
    """What Pillow's built-in font has letters for: Latin, without accents; empty if that is nothing."""
    return " ".join(unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().split())
