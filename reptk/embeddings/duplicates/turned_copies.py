"""Turned and mirrored copies among images, whose embeddings may be less similar than those of other near duplicates.

Every image is compared with those whose invariant signatures are nearest (`reptk.data.decoding.symmetries`), first in gray
and by few pixels, then, where these agree, in color by more.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from reptk.data.decoding.symmetries import IDENTITY, Symmetry, find_symmetry, invariant_signatures, may_be_turned
from reptk.embeddings.duplicates.small_images import SmallImages, options_of, read_square
from reptk.embeddings.embeddings import Embeddings

MAX_DISTANCE = 16.0
"""Between the signatures of copies: their 20 values differ by less than 2 levels for most re-encoded copies."""

NUM_NEAREST = 8
"""Signatures that are compared with each one at most, so that the time grows with the number of images."""

COMPARED_PX = 64
"""Side of the squares that are compared at last."""

MAX_CACHED = 4096
"""Squares that are held in memory: 50 MB."""

CHUNK_PAIRS = 1 << 14


class TurnedPair(NamedTuple):
    """The image of a row is that of another row, turned or mirrored by `symmetry`."""

    row: int
    original: int
    symmetry: Symmetry


class SymmetryFinder:
    """Compares the images of two sets, or of one, and reads their files.

    Args:
        pictures: images that may be turned or mirrored.
        originals: images that they may be copies of.
    """

    def __init__(self, pictures: Embeddings, originals: Embeddings) -> None:
        self._picture = _cached_reader(pictures)
        self._original = self._picture
        if originals is not pictures:
            self._original = _cached_reader(originals)

    def find(self, row: int, original: int) -> Symmetry | None:
        """Return how the original was turned or mirrored to give the image; None if not at all, or another image."""
        picture = self._picture(row)
        if picture is None:
            return None
        original_picture = self._original(original)
        if original_picture is None:
            return None
        symmetry = find_symmetry(picture, original_picture)
        if symmetry == IDENTITY:
            return None
        return symmetry


def _cached_reader(embeddings: Embeddings) -> Callable[[int], NDArray[np.uint8] | None]:
    options = options_of(embeddings)

    @lru_cache(MAX_CACHED)
    def read(row: int) -> NDArray[np.uint8] | None:
        return read_square(embeddings.file(row), COMPARED_PX, options)

    return read


def turned_pairs(pictures: SmallImages, originals: SmallImages, finder: SymmetryFinder) -> list[TurnedPair]:
    """Return images that are turned or mirrored copies, each with one original.

    Blank images are left out. Of originals that are equal in gray, the first is compared.

    Args:
        pictures: images of a set.
        originals: the same ones, or those of another set. In the same set, the original is the earlier row.
        finder: compares the files.
    """
    original_rows = _distinct(originals)
    rows = original_rows
    if originals is not pictures:
        rows = np.flatnonzero(pictures.is_read & ~pictures.is_blank)
    if not len(rows) or not len(original_rows):
        return []
    signatures = invariant_signatures(pictures.gray[rows])
    tree = cKDTree(invariant_signatures(originals.gray[original_rows]))
    pairs = list(_nearest_pairs(tree, signatures, rows, original_rows))
    if originals is pictures:
        ordered = {(max(pair), min(pair)) for pair in pairs}
        pairs = sorted(pair for pair in ordered if pair[0] != pair[1])
    turned_rows = set()
    turned = []
    for row, original in _agreeing_in_gray(pictures, originals, pairs):
        if row in turned_rows:
            continue
        symmetry = finder.find(row, original)
        if symmetry is not None:
            turned_rows.add(row)
            turned.append(TurnedPair(row, original, symmetry))
    return turned


def _distinct(images: SmallImages) -> NDArray[np.int64]:
    """Return the first row of each different image that is not blank."""
    rows = np.flatnonzero(images.is_read & ~images.is_blank)
    _, first = np.unique(images.gray[rows].reshape(len(rows), -1), axis=0, return_index=True)
    return np.sort(rows[first])


def _nearest_pairs(
    tree: cKDTree,
    signatures: NDArray[np.float32],
    rows: NDArray[np.int64],
    original_rows: NDArray[np.int64],
) -> Iterator[tuple[int, int]]:
    """Yield pairs of a row and an original whose signatures are near; nearest first for each row."""
    for start in range(0, len(rows), CHUNK_PAIRS):
        _, nearest = tree.query(
            signatures[start : start + CHUNK_PAIRS], k=range(1, NUM_NEAREST + 2), distance_upper_bound=MAX_DISTANCE
        )
        for row, positions in zip(rows[start : start + CHUNK_PAIRS].tolist(), nearest.tolist(), strict=True):
            for position in positions:
                if position == len(original_rows):  # there is no further one within the distance
                    break
                yield row, int(original_rows[position])


def _agreeing_in_gray(
    pictures: SmallImages, originals: SmallImages, pairs: list[tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    """Yield the pairs of which one is the other turned or mirrored, by a few gray pixels."""
    for start in range(0, len(pairs), CHUNK_PAIRS):
        chunk = np.array(pairs[start : start + CHUNK_PAIRS])
        agree = may_be_turned(pictures.gray[chunk[:, 0]], originals.gray[chunk[:, 1]])
        yield from map(tuple, chunk[agree].tolist())
