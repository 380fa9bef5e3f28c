"""Divide connected images into groups in which all are alike: complete linkage, in the order of the rows.

A chain of images connects ones that have nothing in common: of the frames of a zoom, each is like the next, and the first is
not like the last.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

BLOCK = 256
"""Rows whose similarities to earlier ones are held in memory at a time."""

LARGE_GROUP = 32

ROUNDING = 1e-5
"""Of a similarity in float32, which depends on what else is computed with it."""


def complete_linkage(vectors: Tensor, limit: float) -> list[NDArray[np.int64]]:
    """Divide rows into groups in which every pair has a similarity of at least `limit`.

    Each row joins the group of the most similar earlier row, of those groups to all of whose rows it is similar enough; if
    there is none, it begins another group. Of groups with equally similar rows, it joins the earliest.

    Args:
        vectors: (n, D) of unit length.
        limit: cosine similarity.

    Returns:
        The rows of each group, ascending; groups in the order of their first rows, with those of a single row.
    """
    # As in the comparison of all pairs: half precision rounds the length.
    unit = normalize(vectors.float(), dim=1)
    # Of equal vectors one is compared: a copy is like the members of its group as the first is.
    _, first_rows, copy_of = np.unique(unit.numpy(), axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first_rows)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    groups = _Groups(unit[np.sort(first_rows)], limit)
    for top in range(0, len(order), BLOCK):
        groups.add_block(top)
    group_of = groups.group_of[rank[copy_of.flatten()]]
    by_group = np.argsort(group_of, kind="stable")
    return np.split(by_group, np.flatnonzero(np.diff(group_of[by_group])) + 1)


class _EarlierGroups(NamedTuple):
    """The groups before a block of rows, as its rows see them.

    Attributes:
        similarities: (b, m) of the rows of the block to the members of groups that they may join, group by group.
        starts, stops: the columns of each group; none for a group that no row of the block may join.
        lowest: (b, groups + b) of each row to each group: -infinity for one that it cannot join, infinity for one that has not
            begun. The groups of the block itself are added to it.
    """

    similarities: NDArray[np.float32]
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    lowest: NDArray[np.float32]

    def highest(self, number: int, groups: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the highest similarity of a row of the block to the members of each of these groups before the block."""
        highest = np.full(len(groups), -np.inf, np.float32)
        is_earlier = groups < len(self.starts)
        if is_earlier.any():
            earlier = groups[is_earlier]
            boundaries = _boundaries(self.starts[earlier], self.stops[earlier], self.similarities.shape[1])
            highest[is_earlier] = np.maximum.reduceat(self.similarities[number], boundaries)[::2]
        return highest


class _Groups:
    """The groups of the rows so far.

    Args:
        unit: (n, D) of unit length, all different.
        limit: cosine similarity.
    """

    def __init__(self, unit: Tensor, limit: float) -> None:
        self.unit = unit
        self.limit = limit
        self.group_of = np.zeros(len(unit), np.int64)
        self.first_rows: list[int] = []

    def add_block(self, top: int) -> None:
        """Find the groups of the rows from `top` on."""
        block = self.unit[top : top + BLOCK]
        earlier = self._similarities_to_groups(block, top)
        within = (block @ block.T).numpy()
        for number in range(len(block)):
            self._add(top, number, within[number, :number], earlier)

    def _similarities_to_groups(self, block: Tensor, top: int) -> _EarlierGroups:
        """Compare the rows of a block with those of the earlier groups whose first rows are similar enough to one of them."""
        num_groups = len(self.first_rows)
        starts = np.zeros(num_groups, np.int64)
        stops = np.zeros(num_groups, np.int64)
        lowest = np.full((len(block), num_groups + len(block)), -np.inf, np.float32)
        lowest[:, num_groups:] = np.inf  # of groups that may begin within the block and have no members yet
        similarities = np.empty((len(block), 0), np.float32)
        if num_groups:
            first_similarities = (block @ self.unit[self.first_rows].T).numpy()
            is_open = first_similarities.max(axis=0) >= self.limit - ROUNDING
            rows = np.flatnonzero(is_open[self.group_of[:top]])
            # In the order of the groups, so that the members of each are contiguous columns.
            rows = rows[np.argsort(self.group_of[rows], kind="stable")]
            sizes = np.bincount(self.group_of[rows], minlength=num_groups)
            stops = np.cumsum(sizes)
            starts = stops - sizes
            similarities = (block @ self.unit[rows].T).numpy()
            _write_lowest(lowest, similarities, starts, stops)
        return _EarlierGroups(similarities, starts, stops, lowest)

    def _add(self, top: int, number: int, within: NDArray[np.float32], earlier: _EarlierGroups) -> None:
        """Add a row to the group of its most similar row, of those groups whose lowest similarity is enough; or begin one.

        Args:
            top: first row of the block.
            number: of the row in the block.
            within: its similarities (number,) to the earlier rows of the block.
            earlier: the groups before the block.
        """
        groups_of_block = self.group_of[top : top + number]
        lowest = earlier.lowest[number]
        np.minimum.at(lowest, groups_of_block, within)
        num_groups = len(self.first_rows)
        accepts = np.flatnonzero(lowest[:num_groups] >= self.limit)
        if not len(accepts):
            group = num_groups
            self.first_rows.append(top + number)
        elif len(accepts) == 1:
            group = accepts[0]
        else:
            highest = earlier.highest(number, accepts)
            in_block = np.full(num_groups, -np.inf, np.float32)
            np.maximum.at(in_block, groups_of_block, within)
            group = accepts[np.maximum(highest, in_block[accepts]).argmax()]
        self.group_of[top + number] = group


def _write_lowest(
    lowest: NDArray[np.float32],
    similarities: NDArray[np.float32],
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
) -> None:
    """Write the minimum of each group's columns, from `starts` to `stops`, into the column of the group."""
    is_large = stops - starts >= LARGE_GROUP
    for group in np.flatnonzero(is_large).tolist():
        lowest[:, group] = similarities[:, starts[group] : stops[group]].min(axis=1)
    small = np.flatnonzero(~is_large & (stops > starts))
    if len(small):
        # `reduceat` takes ten times as long per value as `min`, and no loop over groups.
        boundaries = _boundaries(starts[small], stops[small], similarities.shape[1])
        lowest[:, small] = np.minimum.reduceat(similarities, boundaries, axis=1)[:, ::2]


def _boundaries(starts: NDArray[np.int64], stops: NDArray[np.int64], num_columns: int) -> NDArray[np.int64]:
    """Return the indices for `reduceat`, whose results at even positions are those of the ranges from starts to stops."""
    boundaries = np.stack([starts, stops], axis=1).flatten()
    if boundaries[-1] == num_columns:  # no index of a column
        return boundaries[:-1]
    return boundaries
