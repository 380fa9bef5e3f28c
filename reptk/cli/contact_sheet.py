"""Contact sheets: images in a grid with a label for each row, a heading for each column, and a title."""

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# torch and torchvision are imported when there are images to draw, not for the command's --help.
if TYPE_CHECKING:
    from torch import Tensor

MIN_CELL_PX, MAX_CELL_PX = 128, 256
"""Side of a cell. Smaller images are enlarged to fill it, larger ones reduced to fit, by whole factors."""

BACKGROUND = 247
GRAY, BLACK = "#73736f", "#1f1f1d"


class RowLabel(NamedTuple):
    """The text to the left of a row: a name, and a note below it in gray."""

    name: str
    note: str


class Column(NamedTuple):
    """One image in every row, all of one size: (n, 3, H, W) uint8."""

    heading: str
    images: "Tensor"


class Style:
    """Fonts and distances in pixels, `scale` times as large as next to the smallest cells."""

    def __init__(self, scale: float) -> None:
        self.scale = scale
        self.small = ImageFont.load_default(self.px(12))
        self.text = ImageFont.load_default(self.px(13))
        self.large = ImageFont.load_default(self.px(20))
        self.margin_px = self.px(28)
        self.gap_px = self.px(8)
        self.line_px = self.px(19)

    def px(self, length: float) -> int:
        return round(length * self.scale)


def draw(
    title: str, facts: Sequence[tuple[str, str]], labels: Sequence[RowLabel], columns: Sequence[Column]
) -> Image.Image:
    """Return a contact sheet: the title and facts, then a row for every label and a column for every `Column`.

    Images are enlarged by a whole factor, without smoothing, so that every pixel can be seen; those larger than a cell are
    reduced by a whole factor.

    Args:
        facts: (key, text) each, on lines of their own below the title.
    """
    cell_px = min(max(MIN_CELL_PX, *(_side(column) for column in columns)), MAX_CELL_PX)
    style = Style(cell_px / MIN_CELL_PX)
    strips = _strips(columns, cell_px, style.gap_px)
    lefts, width = _column_positions(labels, columns, strips, style, cell_px)
    facts_top = style.margin_px + style.px(34)
    fact_width = width - style.margin_px - lefts[0]
    lines = _fact_lines(facts, style.text, fact_width)
    headings_top = facts_top + style.px(18) + style.line_px * len(lines)
    first_row = headings_top + style.px(38)

    sheet = Image.new("RGB", (width, first_row + strips[0].height + style.margin_px), (BACKGROUND,) * 3)
    pen = ImageDraw.Draw(sheet)
    pen.text((style.margin_px, style.margin_px), drawable(title), BLACK, style.large, anchor="lt")
    for number, (key, text) in enumerate(lines):
        top = facts_top + number * style.line_px
        pen.text((style.margin_px, top), key, GRAY, style.text)
        pen.text((lefts[0], top), text, BLACK, style.text)
    for left, column, strip in zip(lefts, columns, strips, strict=True):
        pen.text((left, headings_top), column.heading, BLACK, style.text)
        pen.text((left, headings_top + style.px(17)), _size_and_scale(column, cell_px), GRAY, style.small)
        sheet.paste(strip, (left, first_row))
    row_px = (strips[0].height + style.gap_px) // len(labels)
    for row, label in enumerate(labels):
        top = first_row + row * row_px - style.px(2)
        pen.text((style.margin_px, top), _shorten(label.name, style.text, cell_px), BLACK, style.text)
        note_top = top
        if label.name:
            note_top += style.px(17)
        pen.text((style.margin_px, note_top), label.note, GRAY, style.small)
    return sheet


def describe_size(images: "Tensor") -> str:
    """Return the size of images (n, 3, H, W) in words."""
    height, width = images.shape[-2:]
    if width == height:
        return f"{width} px"
    return f"{width} x {height} px"


def drawable(text: str) -> str:
    """Return the characters of a text that Pillow's built-in font has: Latin, without accents; possibly none."""
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return " ".join(ascii_text.split())


def _strips(columns: Sequence[Column], cell_px: int, gap_px: int) -> list[Image.Image]:
    """Return the images of each column, one below the other; the rows of all columns have one height."""
    from torch.nn import functional
    from torchvision.utils import make_grid

    tiles = [_tiles(column, cell_px) for column in columns]
    row_px = max(column_tiles.shape[2] for column_tiles in tiles)
    strips = []
    for column_tiles in tiles:
        padded = functional.pad(column_tiles, (0, 0, 0, row_px - column_tiles.shape[2]), value=BACKGROUND)
        grid = make_grid(padded, nrow=1, padding=gap_px, pad_value=BACKGROUND)
        if len(padded) > 1:  # make_grid puts no frame around a single image
            grid = grid[:, gap_px:-gap_px, gap_px:-gap_px]
        strips.append(Image.fromarray(grid.permute(1, 2, 0).contiguous().numpy()))
    return strips


def _tiles(column: Column, cell_px: int) -> "Tensor":
    """Return the images of a column (n, 3, h, w) uint8, enlarged or reduced to about `cell_px`."""
    import torch

    enlargement, reduction = _factors(column, cell_px)
    if reduction == 1:
        return column.images.repeat_interleave(enlargement, 2).repeat_interleave(enlargement, 3)
    reduced = []
    for image in column.images.permute(0, 2, 3, 1).contiguous().numpy():
        pixels = np.array(Image.fromarray(image).reduce(reduction))
        reduced.append(torch.from_numpy(pixels).permute(2, 0, 1))
    return torch.stack(reduced)


def _factors(column: Column, cell_px: int) -> tuple[int, int]:
    """Return by how much images are enlarged and by how much they are reduced; one of the two is 1."""
    side = _side(column)
    return max(1, cell_px // side), max(1, -(-side // cell_px))


def _side(column: Column) -> int:
    return max(column.images.shape[-2:])


def _size_and_scale(column: Column, cell_px: int) -> str:
    enlargement, reduction = _factors(column, cell_px)
    size = describe_size(column.images)
    if enlargement > 1:
        return f"{size},  x{enlargement}"
    if reduction > 1:
        return f"{size},  1/{reduction}"
    return size


def _column_positions(
    labels: Sequence[RowLabel], columns: Sequence[Column], strips: Sequence[Image.Image], style: Style, cell_px: int
) -> tuple[list[int], int]:
    """Return the left edge of each column, and the width of the sheet."""
    widest_label = 0.0
    for label in labels:
        widest_label = max(widest_label, style.text.getlength(label.name), style.small.getlength(label.note))
    left = style.margin_px + round(min(widest_label, cell_px)) + 2 * style.gap_px
    lefts = []
    for column, strip in zip(columns, strips, strict=True):
        lefts.append(left)
        heading = style.text.getlength(column.heading)
        note = style.small.getlength(_size_and_scale(column, cell_px))
        left += max(strip.width, round(heading), round(note)) + style.gap_px
        if len(lefts) == 1:  # the views are set off from the image
            left += 2 * style.gap_px
    return lefts, max(left - style.gap_px + style.margin_px, style.px(480))


def _fact_lines(facts: Sequence[tuple[str, str]], font: ImageFont.FreeTypeFont, width: float) -> list[tuple[str, str]]:
    """Return the facts as lines (key, text) that fit the width; the key is empty on all but the first line of a fact."""
    lines = []
    for key, text in facts:
        for line in _wrap(drawable(text), font, width):
            lines.append((key, line))
            key = ""
    return lines


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return [_shorten(line, font, width) for line in lines]


def _shorten(line: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(f"{line}...") > width:
        line = line[:-1].rstrip()
    return f"{line}..."
