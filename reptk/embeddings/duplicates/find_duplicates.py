"""near_duplicates(): pairs of very similar images, within one set or between two.

All pairs of vectors are compared. Image files are read as well: blank images are told from near duplicates, and turned and
mirrored copies are recognized, also those whose embeddings are less similar.
"""

import warnings
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cosine_similarity

from reptk.core.errors import UsageError
from reptk.embeddings.duplicates.duplicate_groups import NO_ROW, Duplicate, Duplicates
from reptk.embeddings.duplicates.exact_copies import exact_copies
from reptk.embeddings.duplicates.pair_comparison import ConnectedComponents, compare_between, compare_within
from reptk.embeddings.duplicates.same_centers import has_other_sides, split_by_sides
from reptk.embeddings.duplicates.similarity_threshold import SimilarityThreshold, measure_threshold
from reptk.embeddings.duplicates.small_images import SmallImages, read_small_images
from reptk.embeddings.duplicates.turned_copies import SymmetryFinder, TurnedPair, turned_pairs
from reptk.embeddings.embeddings import Embeddings
from reptk.embeddings.encoding.embedder import has_random_weights
from reptk.embeddings.unit_length import with_unit_length
from reptk.models.encoder import Encoder

MIN_SIMILARITY_OF_COPIES = 0.999
"""Equal pixels have equal embeddings, up to the rounding of half precision."""


def near_duplicates(
    first: Embeddings,
    second: Embeddings | None = None,
    *,
    threshold: float | None = None,
    encoder: str | Path | Encoder | None = None,
    device: str = "auto",
    read_images: bool = True,
) -> Duplicates:
    """Find images that are nearly the same, by comparing all pairs.

    Args:
        first: a set of embeddings.
        second: another set of the same encoder, whose images are compared to those of `first`; by default `first` is
            compared to itself.
        threshold: the cosine similarity from which two images are near duplicates; by default it is measured for the encoder
            and the images, see `measure_threshold`.
        encoder: the encoder of the embeddings, or its path if it has moved; it serves that measurement alone.
        device: where the encoder runs.
        read_images: whether to read the image files, of which blank images and turned and mirrored copies are recognized.
            Otherwise the files of near duplicates alone are read, to tell exact copies.

    Raises:
        UsageError: a threshold outside (0, 1].
        DataError: vectors that cannot be compared, sets of different encoders, or another `encoder` than theirs.
    """
    if threshold is not None and not 0 < threshold <= 1:
        raise UsageError(f"--threshold must lie above 0 and at most at 1, got {threshold:g}")
    _warn_of_random_weights(first)
    first = with_unit_length(first, "the index")
    if second is not None:
        first.check_comparable(second)
        second = with_unit_length(second, "the other set")
    first_images = _read(first, read_images)
    second_images = None
    if second is not None:
        second_images = _read(second, read_images)
    if threshold is not None:
        measured = SimilarityThreshold(threshold, "as requested")
    else:
        seen_second = None
        if second is not None:
            seen_second = _without_blank(second, second_images)
        measured = measure_threshold(_without_blank(first, first_images), seen_second, encoder=encoder, device=device)
    if second is None:
        return _within(first, first_images, measured)
    return _between(first, first_images, second, second_images, measured)


def _warn_of_random_weights(embeddings: Embeddings) -> None:
    # The record may come from a file of any origin.
    record = embeddings.metadata.get("encoder")
    origin = None
    if isinstance(record, dict):
        origin = record.get("origin")
    if isinstance(origin, dict) and has_random_weights(origin):
        warnings.warn(
            f"the encoder, {origin['backbone']}, has random weights: its similarities are near 1 for all images, so what "
            "is only similar means little. Embed by a run, or with --weights FILE or --pretrained",
            stacklevel=3,
        )


def _read(embeddings: Embeddings, read_images: bool) -> SmallImages:
    if read_images:
        return read_small_images(embeddings)
    return SmallImages.unread(len(embeddings))


def _without_blank(embeddings: Embeddings, images: SmallImages) -> Embeddings:
    """Return the embeddings of the other images; all blank images are alike, which says nothing of the others."""
    if not images.is_blank.any():
        return embeddings
    rows = np.flatnonzero(~images.is_blank).tolist()
    paths = None
    if embeddings.paths is not None:
        paths = [embeddings.paths[row] for row in rows]
    return Embeddings(
        embeddings.vectors[rows], [embeddings.ids[row] for row in rows], paths, metadata=embeddings.metadata
    )


def _within(first: Embeddings, images: SmallImages, measured: SimilarityThreshold) -> Duplicates:
    best, nearest, row_groups = compare_within(first.vectors, measured.value, images.is_blank)
    finder = None
    if images.is_read.any():
        row_groups = _without_same_centers(row_groups, images, first.vectors, best, nearest)
        finder = SymmetryFinder(first, first)
        pairs = turned_pairs(images, images, finder)
        row_groups = _join_groups(row_groups, pairs, len(first))
        for pair in pairs:
            for row, other in ((pair.row, pair.original), (pair.original, pair.row)):
                _set_nearest(first, row, first, other, best, nearest)
    groups = [_group(first, rows.tolist(), best, nearest, finder) for rows in row_groups]
    return Duplicates(first, None, measured, groups, leaks=[], blank=np.flatnonzero(images.is_blank).tolist())


def _between(
    first: Embeddings,
    first_images: SmallImages,
    second: Embeddings,
    second_images: SmallImages,
    measured: SimilarityThreshold,
) -> Duplicates:
    best, nearest = compare_between(
        second.vectors, first.vectors, measured.value, second_images.is_blank, first_images.is_blank
    )
    finder = None
    if first_images.is_read.any() and second_images.is_read.any():
        finder = SymmetryFinder(second, first)
        for row in (nearest != NO_ROW).nonzero().flatten().tolist():
            # The nearest one alone is compared: another one is less similar.
            original = nearest[row : row + 1].numpy()
            if has_other_sides(second_images, row, first_images, original)[0]:
                nearest[row] = NO_ROW
        for pair in turned_pairs(second_images, first_images, finder):
            _set_nearest(second, pair.row, first, pair.original, best, nearest)
    leaked_rows = (nearest != NO_ROW).nonzero().flatten()
    order = best[leaked_rows].argsort(descending=True, stable=True)
    leaks = [_leak(second, row, first, best, nearest, finder) for row in leaked_rows[order].tolist()]
    blank = np.flatnonzero(second_images.is_blank).tolist()
    return Duplicates(first, second, measured, groups=[], leaks=leaks, blank=blank)


def _without_same_centers(
    groups: list[NDArray[np.int64]], images: SmallImages, vectors: Tensor, best: Tensor, nearest: Tensor
) -> list[NDArray[np.int64]]:
    """Return the groups without pictures that have only the center in common; `best` and `nearest` follow."""
    whole_groups = []
    for rows in groups:
        parts = split_by_sides(rows, images)
        whole_groups += parts
        if len(parts) == 1 and len(parts[0]) == len(rows):
            continue
        nearest[rows] = NO_ROW
        best[rows] = 0.0
        for part in parts:
            similarities = vectors[part].float() @ vectors[part].float().T
            best[part], position = similarities.fill_diagonal_(-1.0).max(1)
            nearest[part] = torch.from_numpy(part)[position].to(nearest.dtype)
    return sorted(whole_groups, key=len, reverse=True)


def _join_groups(groups: list[NDArray[np.int64]], pairs: list[TurnedPair], count: int) -> list[NDArray[np.int64]]:
    """Return the groups with the turned and mirrored copies of their images."""
    if not pairs:
        return groups
    components = ConnectedComponents(count)
    for rows in groups:
        components.connect(rows, np.full_like(rows, rows[0]))
    components.connect(np.array([pair.row for pair in pairs]), np.array([pair.original for pair in pairs]))
    return components.groups()


def _set_nearest(
    embeddings: Embeddings, row: int, others: Embeddings, other: int, best: Tensor, nearest: Tensor
) -> None:
    """Set the nearest image of a row that has none, since its embedding is too different."""
    if nearest[row] != NO_ROW:
        return
    nearest[row] = other
    best[row] = cosine_similarity(embeddings.vectors[row].float(), others.vectors[other].float(), dim=0)


def _group(
    embeddings: Embeddings, rows: list[int], best: Tensor, nearest: Tensor, finder: SymmetryFinder | None
) -> list[Duplicate]:
    """Return the images of a group."""
    files = {row: embeddings.file(row) for row in rows}
    similar_rows = [row for row in rows if best[row] >= MIN_SIMILARITY_OF_COPIES]
    copies = exact_copies(files, similar_rows)
    turned = {}
    if finder is not None:
        others = [row for row in rows if not copies[row]]
        turned = _turned_in_group(others, rows[0], nearest, finder)
    group = []
    for row in rows:
        kind, copy_of = copies[row], NO_ROW
        if not kind and row in turned:
            kind, copy_of = turned[row]
        group.append(_duplicate(embeddings, row, best, nearest, kind, copy_of))
    return group


def _turned_in_group(
    rows: list[int], reference: int, nearest: Tensor, finder: SymmetryFinder
) -> dict[int, tuple[str, int]]:
    """Return, by row, how an image is turned or mirrored, and the row of the image that it is a copy of.

    Each is compared with the first image of its group, then with its nearest.
    """
    turned: dict[int, tuple[str, int]] = {}
    for row in rows:
        for original in (reference, int(nearest[row])):
            if original == row:
                continue
            symmetry = finder.find(row, original)
            if symmetry is not None:
                turned[row] = (symmetry.name, original)
                turned.setdefault(original, (symmetry.inverse().name, row))
                break
    return turned


def _leak(
    second: Embeddings, row: int, first: Embeddings, best: Tensor, nearest: Tensor, finder: SymmetryFinder | None
) -> Duplicate:
    """Return an image of the second set whose nearest image in the first is a near duplicate."""
    original = int(nearest[row])
    files = {0: second.file(row), 1: first.file(original)}
    similar_rows = ()
    if best[row] >= MIN_SIMILARITY_OF_COPIES:
        similar_rows = files
    kind, copy_of = exact_copies(files, similar_rows)[0], NO_ROW
    if not kind and finder is not None:
        symmetry = finder.find(row, original)
        if symmetry is not None:
            kind, copy_of = symmetry.name, original
    return _duplicate(second, row, best, nearest, kind, copy_of)


def _duplicate(embeddings: Embeddings, row: int, best: Tensor, nearest: Tensor, copy: str, copy_of: int) -> Duplicate:
    return Duplicate(
        row=row,
        id=embeddings.ids[row],
        label=embeddings.class_of(row),
        path=embeddings.file(row),
        similarity=min(1.0, float(best[row])),  # rounding may give a little more
        nearest=int(nearest[row]),
        copy=copy,
        copy_of=copy_of,
    )
