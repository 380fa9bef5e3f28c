"""Compare all pairs of vectors, a block of them at a time, so that memory grows with their number and not with its square."""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn.functional import normalize

from reptk.core.progress import progress
from reptk.embeddings.duplicates.complete_linkage import complete_linkage

BLOCK = 2048
"""Images per side of a block of similarities."""

MAX_PENDING_PAIRS = 1 << 20
"""Pairs of near duplicates that are collected before they are reduced to connected components."""

NO_ROW = -1


def compare_within(
    vectors: Tensor, threshold: float, is_excluded: NDArray[np.bool_] | None = None
) -> tuple[Tensor, Tensor, list[NDArray[np.int64]]]:
    """Compare all pairs of one set.

    Args:
        vectors: (n, F).
        threshold: cosine similarity.
        is_excluded: (n,) rows that are like no other.

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
                _exclude(similarities, is_excluded, top, is_excluded, left)
                if left == top:
                    similarities.fill_diagonal_(-torch.inf)  # an image is no duplicate of itself
                if similarities.amax() < limit:
                    continue  # most blocks hold no near duplicates
                _update_nearest(best, nearest, top, similarities, left)
                _update_nearest(best, nearest, left, similarities.T, top)
                components.connect_block((similarities >= limit).numpy(), top, left)
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


def compare_between(
    queries: Tensor,
    bank: Tensor,
    threshold: float,
    excluded_queries: NDArray[np.bool_] | None = None,
    excluded_bank: NDArray[np.bool_] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return, per query, the similarity and the row of its nearest bank row, -1 if that is below the threshold.

    Rows of either that are excluded, (n,), are like no other.
    """
    limit = _with_tolerance(threshold)
    best = torch.full((len(queries),), -torch.inf)
    nearest = torch.full((len(queries),), NO_ROW)
    num_blocks = -(-len(queries) // BLOCK)
    with progress("comparing", num_blocks) as advance:
        for top in range(0, len(queries), BLOCK):
            rows = _unit_rows(queries, top)
            for left in range(0, len(bank), BLOCK):
                similarities = rows @ _unit_rows(bank, left).T
                _exclude(similarities, excluded_queries, top, excluded_bank, left)
                if similarities.amax() >= limit:
                    _update_nearest(best, nearest, top, similarities, left)
            advance(1)
    nearest[best < limit] = NO_ROW
    return best, nearest


def _exclude(
    similarities: Tensor,
    excluded_rows: NDArray[np.bool_] | None,
    top: int,
    excluded_columns: NDArray[np.bool_] | None,
    left: int,
) -> None:
    """Set the similarities of excluded rows and columns of a block, from `top` and `left` on, to minus infinity."""
    height, width = similarities.shape
    if excluded_rows is not None and excluded_rows[top : top + height].any():
        similarities[torch.from_numpy(excluded_rows[top : top + height])] = -torch.inf
    if excluded_columns is not None and excluded_columns[left : left + width].any():
        similarities[:, torch.from_numpy(excluded_columns[left : left + width])] = -torch.inf


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
        self._component: NDArray[np.int32] | None = None
        """As of the last reduction."""
        self._pending: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        self._num_pending = 0

    def connect(self, nodes: NDArray[np.int64], others: NDArray[np.int64]) -> None:
        """Add an edge between each node and the one at the same position in `others`."""
        self._pending.append((nodes, others))
        self._num_pending += len(nodes)
        # A reduction visits all nodes; with at least as many new edges its cost per edge is small.
        if self._num_pending > max(MAX_PENDING_PAIRS, self.count):
            self._reduce()

    def connect_block(self, is_edge: NDArray[np.bool_], top: int, left: int) -> None:
        """Add the edges of a block (h, w) between nodes from `top` on and others from `left` on; `is_edge` is overwritten."""
        if self._component is not None:
            # Of many images that are all alike, nearly all edges are within a component.
            height, width = is_edge.shape
            is_edge &= self._component[top : top + height, None] != self._component[None, left : left + width]
        nodes, others = is_edge.nonzero()
        self.connect(nodes + top, others + left)

    def _reduce(self) -> None:
        """Replace the edges by one edge per node, to the first node of its component."""
        component = self._component_of_nodes()
        _, first_nodes = np.unique(component, return_index=True)
        self._component = component
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
