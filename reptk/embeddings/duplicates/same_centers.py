"""Pictures with the same center and other sides, e.g. overlapping panoramas: no duplicates, although an encoder that sees
centers alone gives them the same embedding."""

import numpy as np
from numpy.typing import NDArray

from reptk.embeddings.duplicates.small_images import SmallImages

MAX_CENTER_LEVELS = 12.0
"""Mean difference of two center squares, of 255 levels, up to which they show the same. A JPEG file, which is decoded at an
eighth of its size here, differs from a PNG file of the same picture by up to 9."""

MIN_WHOLE_LEVELS = 8.0
"""Mean difference of the whole pictures from which on they show something else."""


def has_other_sides(
    pictures: SmallImages, row: int, originals: SmallImages, original_rows: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Return which originals (k,) have the center of a picture, and other sides."""
    center_levels = _mean_difference(pictures.center[row], originals.center[original_rows])
    whole_levels = _mean_difference(pictures.gray[row], originals.gray[original_rows])
    are_read = pictures.is_read[row] & originals.is_read[original_rows]
    has_same_center = center_levels <= MAX_CENTER_LEVELS
    # Small differences of the center count twice: the sides of a re-encoded copy differ as much as its center.
    is_other_whole = whole_levels >= MIN_WHOLE_LEVELS + 2 * center_levels
    return are_read & has_same_center & is_other_whole


def split_by_sides(rows: NDArray[np.int64], images: SmallImages) -> list[NDArray[np.int64]]:
    """Return the rows of a group of near duplicates as groups in which no two pictures have only the center in common.

    Groups of one row are left out.
    """
    if _cannot_differ(rows, images):
        return [rows]
    parts: list[list[int]] = []
    for row in rows.tolist():
        for part in parts:
            if not has_other_sides(images, row, images, np.array(part)).any():
                part.append(row)
                break
        else:
            parts.append([row])
    return [np.array(part) for part in parts if len(part) > 1]


def _cannot_differ(rows: NDArray[np.int64], images: SmallImages) -> bool:
    """Return whether a look at each picture shows that no two have other sides, without a comparison of all pairs."""
    if np.array_equal(images.center[rows], images.gray[rows]):
        return True  # all are squares
    to_first = _mean_difference(images.gray[rows[0]], images.gray[rows])
    return bool(2 * to_first.max() < MIN_WHOLE_LEVELS)


def _mean_difference(image: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.float64]:
    return np.abs(others.astype(np.int16) - image.astype(np.int16)).mean(axis=(1, 2))
