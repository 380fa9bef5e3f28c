"""near_duplicates(): pairs of very similar images, within one set (as groups) or between two sets (as leaks).

All pairs are compared, a block of them at a time, so that memory grows with the number of images and not with its square.
"""

import csv
import io
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn.functional import normalize

from reptk.core.csv_cells import escape_formula
from reptk.core.errors import UsageError
from reptk.core.files import write_text
from reptk.embeddings.complete_linkage import complete_linkage
from reptk.embeddings.embedder import has_random_weights
from reptk.embeddings.exact_copies import Copy, exact_copies
from reptk.embeddings.output_path import explain_write_errors
from reptk.embeddings.progress import progress
from reptk.embeddings.similarity_threshold import SimilarityThreshold, measure_threshold
from reptk.embeddings.store import Embeddings
from reptk.embeddings.unit_length import with_unit_length
from reptk.models.encoder import Encoder

BLOCK = 2048
"""Images per side of a block of similarities."""

MAX_PENDING_PAIRS = 1 << 20
"""Pairs of near duplicates that are collected before they are reduced to connected components."""

MIN_SIMILARITY_OF_COPIES = 0.999
"""Equal pixels have equal embeddings, up to the rounding of half precision."""

MANY_DIGITS_FROM = 0.99
"""Thresholds from which on similarities are printed with six digits."""

NO_ROW = -1
CSV_COLUMNS = ("group", "id", "label", "path", "similarity", "nearest", "nearest_label", "nearest_path", "copy")


class Duplicate(NamedTuple):
    """One image that has a near duplicate.

    Args:
        row: in its set.
        id: of the image.
        label: class name, empty if the image has none.
        path: of its file, None if it is not a file.
        similarity: cosine similarity to its nearest image.
        nearest: row of that image; within a set it may be in another group, between two sets it is in the first.
        copy: whether another image of its group, or its nearest image, is a copy: "bytes" for the same file, "pixels" for
            another file that decodes to the same pixels, empty for an image that is only similar.
    """

    row: int
    id: str
    label: str
    path: Path | None
    similarity: float
    nearest: int
    copy: Copy


@dataclass(frozen=True)
class Duplicates:
    """Near duplicates of one set, or between two.

    Args:
        first: the set.
        second: the other set, None for duplicates within one.
        measured: the cosine similarity from which two images are near duplicates, and why.
        groups: within a set: images that are all near duplicates of each other, largest group first.
        leaks: between sets: the images of `second` that have a near duplicate in `first`, most similar first.
    """

    first: Embeddings
    second: Embeddings | None
    measured: SimilarityThreshold
    groups: list[list[Duplicate]]
    leaks: list[Duplicate]

    @property
    def threshold(self) -> float:
        """The cosine similarity from which two images are near duplicates."""
        return self.measured.value

    def format_similarity(self, similarity: float) -> str:
        """Return a similarity with three digits, or six if the threshold is so near 1 that three would all be 1.000."""
        digits = 3 if self.threshold < MANY_DIGITS_FROM else 6
        return f"{similarity:.{digits}f}"

    @property
    def count(self) -> int:
        """Number of images in groups, or of leaks."""
        return len(self.leaks) + sum(map(len, self.groups))

    def count_copies(self, kind: Copy) -> int:
        """Return how many of them are copies of another of this kind: "bytes" or "pixels"."""
        count = 0
        for group in self._all_groups():
            count += sum(duplicate.copy == kind for duplicate in group)
        return count

    def count_label_conflicts(self) -> int:
        """Return how many groups hold images of different labels, or how many leaks have another label in `first`."""
        conflicts = 0
        for group in self.groups:
            labels = {duplicate.label for duplicate in group if duplicate.label}
            conflicts += len(labels) > 1
        for leak in self.leaks:
            other_label = self.first.class_of(leak.nearest)
            conflicts += bool(leak.label and other_label and leak.label != other_label)
        return conflicts

    def count_by_size(self) -> dict[int, int]:
        """Return how many groups there are of each size, smallest size first."""
        return dict(sorted(Counter(map(len, self.groups)).items()))

    def save(self, path: Path) -> None:
        """Write a CSV file with one line per image.

        Raises:
            EnvironmentProblem: the file cannot be written.
        """
        text = io.StringIO(newline="")
        table = csv.writer(text, lineterminator="\n")
        table.writerow(CSV_COLUMNS)
        for number, group in enumerate(self._all_groups(), 1):
            for duplicate in group:
                table.writerow([number, *map(escape_formula, self._csv_cells(duplicate))])
        with explain_write_errors(path):
            write_text(path, text.getvalue())

    def _all_groups(self) -> list[list[Duplicate]]:
        """Return the groups; every leak is a group of its own."""
        return self.groups + [[leak] for leak in self.leaks]

    def _csv_cells(self, duplicate: Duplicate) -> list[object]:
        nearest = duplicate.nearest
        return [
            duplicate.id,
            duplicate.label,
            duplicate.path or "",
            f"{duplicate.similarity:.6f}",
            self.first.ids[nearest],
            self.first.class_of(nearest),
            self.first.file(nearest) or "",
            duplicate.copy or "no",
        ]


def near_duplicates(
    first: Embeddings,
    second: Embeddings | None = None,
    *,
    threshold: float | None = None,
    encoder: str | Path | Encoder | None = None,
    device: str = "auto",
) -> Duplicates:
    """Find images that are nearly the same, by comparing all pairs.

    Args:
        first: a set of embeddings.
        second: another set of the same encoder, whose images are compared to those of `first`; by default `first` is
            compared to itself.
        threshold: the cosine similarity from which two images are near duplicates; by default it is measured for the encoder
            and the images, see `measure_threshold`.
        encoder: the encoder of the embeddings, or its present place if it has moved; it serves that measurement alone.
        device: where the encoder runs.

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
    if threshold is None:
        measured = measure_threshold(first, second, encoder=encoder, device=device)
    else:
        measured = SimilarityThreshold(threshold, "as requested")
    if second is None:
        best, nearest, row_groups = _compare_within(first.vectors, measured.value)
        groups = [_group(first, rows.tolist(), best, nearest) for rows in row_groups]
        return Duplicates(first, None, measured, groups, leaks=[])

    best, nearest = _compare_between(second.vectors, first.vectors, measured.value)
    leaked_rows = (nearest != NO_ROW).nonzero().flatten()
    order = best[leaked_rows].argsort(descending=True, stable=True)
    leaks = []
    for row in leaked_rows[order].tolist():
        leaks.append(_duplicate(second, row, best, nearest, _copy_between(second, row, first, best, nearest)))
    return Duplicates(first, second, measured, groups=[], leaks=leaks)


def _warn_of_random_weights(embeddings: Embeddings) -> None:
    # The record may come from a file of any origin.
    record = embeddings.about.get("encoder")
    origin = record.get("origin") if isinstance(record, dict) else None
    if isinstance(origin, dict) and has_random_weights(origin):
        warnings.warn(
            f"the encoder, {origin['backbone']}, has random weights: its similarities are near 1 for all images, so what "
            "is only similar means little. Embed by a run, or with --weights FILE or --pretrained",
            stacklevel=3,
        )


def _compare_within(vectors: Tensor, threshold: float) -> tuple[Tensor, Tensor, list[NDArray[np.int64]]]:
    """Compare all pairs of one set.

    Returns:
        Per row, the similarity and the row of its nearest other row, -1 if that is below the threshold; and the rows of
        each group.
    """
    limit = _with_tolerance(threshold)
    count = len(vectors)
    best = torch.full((count,), -torch.inf)
    nearest = torch.full((count,), NO_ROW)
    components = ConnectedComponents(count)
    num_blocks = -(-count // BLOCK)
    with progress("comparing", num_blocks) as advance:
        for top in range(0, count, BLOCK):
            rows = _unit_rows(vectors, top)
            for left in range(top, count, BLOCK):  # the matrix is symmetric: its upper half is enough
                similarities = rows @ _unit_rows(vectors, left).T
                if left == top:
                    similarities.fill_diagonal_(-torch.inf)  # an image is no duplicate of itself
                if similarities.amax() < limit:
                    continue  # most blocks hold no near duplicates
                _update_nearest(best, nearest, top, similarities, left)
                _update_nearest(best, nearest, left, similarities.T, top)
                pairs = (similarities >= limit).nonzero().numpy()
                components.connect(pairs[:, 0] + top, pairs[:, 1] + left)
            advance(1)
    nearest[best < limit] = NO_ROW
    groups = []
    for rows in components.groups():
        for members in complete_linkage(vectors[rows], limit):
            # The rest of a chain is like some image of a group, but not like all of them.
            if len(members) > 1:
                groups.append(rows[members])
    groups.sort(key=lambda rows: (-len(rows), rows[0]))
    return best, nearest, groups


def _compare_between(queries: Tensor, bank: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Return, per query, the similarity and the row of its nearest bank row, -1 if that is below the threshold."""
    limit = _with_tolerance(threshold)
    best = torch.full((len(queries),), -torch.inf)
    nearest = torch.full((len(queries),), NO_ROW)
    num_blocks = -(-len(queries) // BLOCK)
    with progress("comparing", num_blocks) as advance:
        for top in range(0, len(queries), BLOCK):
            rows = _unit_rows(queries, top)
            for left in range(0, len(bank), BLOCK):
                similarities = rows @ _unit_rows(bank, left).T
                if similarities.amax() >= limit:
                    _update_nearest(best, nearest, top, similarities, left)
            advance(1)
    nearest[best < limit] = NO_ROW
    return best, nearest


def _with_tolerance(threshold: float) -> float:
    """Lower the threshold by the rounding error of similarities.

    Equal images may have a similarity of a little less than 1, and a threshold of 1 must find them. The tolerance is small
    enough for encoders whose similarities are all above 0.999.
    """
    if threshold > 1 - 1e-3:
        return threshold - 1e-5
    return threshold - 1e-6


def _unit_rows(vectors: Tensor, start: int) -> Tensor:
    """Return a block of vectors in float32, with the unit length that half precision has rounded."""
    return normalize(vectors[start : start + BLOCK].float(), dim=1)


def _update_nearest(best: Tensor, nearest: Tensor, top: int, similarities: Tensor, left: int) -> None:
    """Update the nearest row of rows from `top` on with a block of similarities to rows from `left` on.

    Of equal similarities the smaller row wins, so that the order of the blocks does not matter.
    """
    values, columns = similarities.max(dim=1)
    candidates = columns + left
    rows = slice(top, top + len(values))
    is_better = (values > best[rows]) | ((values == best[rows]) & (candidates < nearest[rows]))
    best[rows] = torch.where(is_better, values, best[rows])
    nearest[rows] = torch.where(is_better, candidates, nearest[rows])


class ConnectedComponents:
    """Connected components of a graph whose edges arrive in parts.

    A thousand copies of an image make half a million edges. So whenever many have been collected, they are replaced by one
    edge from each node to the first node of its component, which does not change the components.

    Args:
        count: number of nodes.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._pending: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        self._num_pending = 0

    def connect(self, nodes: NDArray[np.int64], others: NDArray[np.int64]) -> None:
        """Add an edge between each node and the one at the same place in `others`."""
        self._pending.append((nodes, others))
        self._num_pending += len(nodes)
        # A reduction visits all nodes; with at least as many new edges its cost per edge is small.
        if self._num_pending > max(MAX_PENDING_PAIRS, self.count):
            self._reduce()

    def _reduce(self) -> None:
        """Replace the edges by one edge per node, to the first node of its component."""
        component = self._component_of_nodes()
        _, first_nodes = np.unique(component, return_index=True)
        self._pending = [(np.arange(self.count), first_nodes[component])]
        self._num_pending = 0

    def groups(self) -> list[NDArray[np.int64]]:
        """Return the nodes of each component of at least two, largest first, then by their first node."""
        component = self._component_of_nodes()
        order = np.argsort(component, kind="stable")
        boundaries = np.flatnonzero(np.diff(component[order])) + 1
        groups = [nodes for nodes in np.split(order, boundaries) if len(nodes) > 1]
        return sorted(groups, key=lambda nodes: (-len(nodes), nodes[0]))

    def _component_of_nodes(self) -> NDArray[np.int32]:
        """Return the number of each node's component (count,)."""
        if not self._pending:
            return np.arange(self.count)
        parts_of_nodes, parts_of_others = zip(*self._pending, strict=True)
        nodes = np.concatenate(parts_of_nodes)
        others = np.concatenate(parts_of_others)
        edges = coo_array((np.ones(len(nodes), bool), (nodes, others)), shape=(self.count, self.count))
        _, component = connected_components(edges, directed=False)
        return component


def _group(embeddings: Embeddings, rows: list[int], best: Tensor, nearest: Tensor) -> list[Duplicate]:
    """Return the images of a group."""
    files = {row: embeddings.file(row) for row in rows}
    similar_rows = [row for row in rows if best[row] >= MIN_SIMILARITY_OF_COPIES]
    copies = exact_copies(files, similar_rows)
    return [_duplicate(embeddings, row, best, nearest, copies[row]) for row in rows]


def _copy_between(second: Embeddings, row: int, first: Embeddings, best: Tensor, nearest: Tensor) -> Copy:
    """Return whether an image of the second set is a copy of its nearest in the first."""
    files = {0: second.file(row), 1: first.file(int(nearest[row]))}
    similar_rows = files if best[row] >= MIN_SIMILARITY_OF_COPIES else ()
    return exact_copies(files, similar_rows)[0]


def _duplicate(embeddings: Embeddings, row: int, best: Tensor, nearest: Tensor, copy: Copy) -> Duplicate:
    return Duplicate(
        row=row,
        id=embeddings.ids[row],
        label=embeddings.class_of(row),
        path=embeddings.file(row),
        similarity=min(1.0, float(best[row])),  # rounding may give a little more
        nearest=int(nearest[row]),
        copy=copy,
    )
