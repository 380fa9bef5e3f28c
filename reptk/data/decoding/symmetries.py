"""Pictures turned by quarters and mirrored: the eight symmetries of a square, found by comparing pixels."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MAX_RMS_LEVELS = 12.0
MAX_RMS_SHARE = 0.4
"""Two pictures can be the same only if the root mean square of their difference is at most `MAX_RMS_LEVELS` of 255, and at most
this share of the standard deviation of the picture."""

CELL_PX = 8
MIN_CELL_STD = 1.5
MIN_CELLS = 12
"""The details of two pictures are compared cell by cell: side of a cell in pixels, the standard deviation (levels) from which
on a cell has details, and how many such cells there have to be."""

MIN_CORRELATION = 0.85
"""Of the details of the same picture, the median of the cells: 95 % of copies by JPEG of quality 75 have 0.92 and more."""

MIN_GAIN = 0.1
"""A picture that is symmetric itself is not turned or mirrored: as it is, its correlation has to be lower by this."""

SIGNATURE_PX = 8


class Symmetry(NamedTuple):
    """Mirrored left to right or not, then turned clockwise by quarters."""

    is_mirrored: bool
    quarters: int

    @property
    def name(self) -> str:
        """E.g. `turned_90`, `mirrored` or `mirrored_turned_270`; empty for the picture as it is."""
        parts = []
        if self.is_mirrored:
            parts.append("mirrored")
        if self.quarters:
            parts.append(f"turned_{90 * self.quarters}")
        return "_".join(parts)

    def apply(self, images: NDArray, axes: tuple[int, int] = (0, 1)) -> NDArray:
        """Return the pictures changed by it.

        Args:
            images: square pictures.
            axes: those of the rows and of the columns.
        """
        if self.is_mirrored:
            images = np.flip(images, axes[1])
        # rot90 turns from the first axis towards the second, which is counterclockwise.
        return np.rot90(images, -self.quarters, axes)

    def inverse(self) -> "Symmetry":
        """Return what undoes it."""
        if self.is_mirrored:  # a reflection undoes itself
            return self
        return Symmetry(False, -self.quarters % 4)


IDENTITY = Symmetry(False, 0)

SYMMETRIES = tuple(Symmetry(is_mirrored, quarters) for is_mirrored in (False, True) for quarters in range(4))
"""All eight; the picture as it is comes first."""

BY_NAME = {symmetry.name: symmetry for symmetry in SYMMETRIES}


def find_symmetry(picture: NDArray[np.uint8], original: NDArray[np.uint8]) -> Symmetry | None:
    """Return how the original was turned or mirrored to give the picture, which may be encoded and resized again.

    Pictures that have the same outlines, such as black ones with a white disc, differ in their details. So correlations are
    computed within cells of 8 x 8 pixels, each with its own mean and contrast, and their median over the cells decides.

    Args:
        picture: (S, S, 3), e.g. of 64 pixels a side.
        original: (S, S, 3).

    Returns:
        `IDENTITY` for a picture that is the original as it is, or could be: one that is symmetric itself. None for different
        pictures, and for those with too few details to tell.
    """
    picture_cells = _cells(picture)
    correlations = []
    for symmetry in SYMMETRIES:
        changed = symmetry.apply(original)
        difference = picture.astype(np.float32) - changed
        if np.sqrt(np.square(difference).mean()) > 2 * MAX_RMS_LEVELS:
            correlations.append(-1.0)
        else:
            correlations.append(_median_correlation(picture_cells, _cells(changed)))
    best = int(np.argmax(correlations))
    if correlations[best] < MIN_CORRELATION:
        return None
    if correlations[best] - correlations[0] < MIN_GAIN:
        return IDENTITY
    return SYMMETRIES[best]


def may_be_turned(pictures: NDArray[np.uint8], originals: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return for which of n pairs of gray pictures, (n, S, S), one may be the other turned or mirrored: a quick test."""
    count = len(pictures)
    values = pictures.reshape(count, -1).astype(np.float32)
    differences = np.empty((len(SYMMETRIES), count), np.float32)
    for position, symmetry in enumerate(SYMMETRIES):
        changed = symmetry.apply(originals, (1, 2)).reshape(count, -1)
        differences[position] = np.sqrt(np.square(values - changed).mean(axis=1))
    limit = np.minimum(MAX_RMS_LEVELS, MAX_RMS_SHARE * values.std(axis=1))
    return (differences.argmin(axis=0) > 0) & (differences.min(axis=0) <= limit)


def _cells(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the gray values of each cell (cells, pixels), relative to the mean of the cell."""
    num = len(picture) // CELL_PX
    gray = picture.mean(axis=2, dtype=np.float32)
    blocks = gray.reshape(num, CELL_PX, num, CELL_PX).transpose(0, 2, 1, 3).reshape(num * num, -1)
    return blocks - blocks.mean(axis=1, keepdims=True)


def _median_correlation(cells: NDArray[np.float32], other_cells: NDArray[np.float32]) -> float:
    """Return the median over the cells that have details; -1 if too few have."""
    std, other_std = cells.std(axis=1), other_cells.std(axis=1)
    has_details = np.maximum(std, other_std) >= MIN_CELL_STD
    if has_details.sum() < MIN_CELLS:
        return -1.0
    covariance = (cells * other_cells).mean(axis=1)
    correlations = covariance / np.maximum(std * other_std, np.finfo(np.float32).tiny)
    return float(np.median(correlations[has_details]))


def invariant_signatures(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return values (n, 20) of gray pictures (n, 16, 16) that are the same for a picture, however turned and mirrored.

    The symmetries move each of 8 x 8 cells to at most seven others. The mean and the standard deviation of such cells are
    the same for all eight.
    """
    cell_px = pictures.shape[1] // SIGNATURE_PX
    cells = pictures.reshape(len(pictures), SIGNATURE_PX, cell_px, SIGNATURE_PX, cell_px).mean(
        axis=(2, 4), dtype=np.float32
    )
    numbers = np.arange(SIGNATURE_PX * SIGNATURE_PX).reshape(SIGNATURE_PX, SIGNATURE_PX)
    orbits = np.min([symmetry.apply(numbers) for symmetry in SYMMETRIES], axis=0).flatten()
    flat = cells.reshape(len(pictures), -1)
    columns = []
    for orbit in np.unique(orbits):
        members = flat[:, orbits == orbit]
        columns += [members.mean(axis=1), members.std(axis=1)]
    return np.stack(columns, axis=1)
