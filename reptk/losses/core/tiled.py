"""Log-sum-exp in tiles, in plain PyTorch: exact, on any device, with memory for the rows and one tile.

Similarity is symmetric, so a tile of rows I and keys J of the anchors' own block serves I by its row sums and J by its
column sums, and only tiles on and above the diagonal are computed: 4 N^2 D operations for value and gradient, where a
dense matrix with autograd needs 6. Sums over positives alone are computed by `positive_blocks.py`.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from reptk.losses.core import positive_blocks
from reptk.losses.core.key_blocks import ExpSum, KeyBlock, LogSums, excluded_pairs

TILE = 512
"""Rows and keys of a tile; 512 x 512 in float32 is 1 MB, which stays in a core's cache."""


def forward(anchors: KeyBlock, key_blocks: list[KeyBlock], exp_sums: list[ExpSum], with_expectation: bool) -> LogSums:
    """See `Implementation.forward`. Caches nothing."""
    log_sums, expected = [], []
    for exp_sum in exp_sums:
        log_sum, expected_similarity = _sum_over_blocks(anchors, key_blocks, exp_sum, with_expectation)
        log_sums.append(log_sum)
        expected.append(expected_similarity)
    log_sums = torch.stack(log_sums)
    expected = torch.stack(expected) if with_expectation else log_sums.new_empty(0)
    return LogSums(log_sums, expected, cache=log_sums.new_empty(0))


def backward(anchors: KeyBlock, key_blocks: list[KeyBlock], exp_sums: list[ExpSum], cache: Tensor) -> Tensor:
    """See `Implementation.backward`."""
    grad = torch.zeros_like(anchors.z)
    for number, exp_sum in enumerate(exp_sums):
        add_gradient = positive_blocks.add_gradient if exp_sum.candidates == "positives" else _add_gradient
        scaled_anchors = _with_scaled_gradient(anchors, number, exp_sum)
        for block in key_blocks:
            is_self = block is anchors
            scaled_block = scaled_anchors if is_self else _with_scaled_gradient(block, number, exp_sum)
            add_gradient(grad, scaled_anchors, scaled_block, exp_sum, is_self)
    return grad


def _sum_over_blocks(
    anchors: KeyBlock, key_blocks: list[KeyBlock], exp_sum: ExpSum, with_expectation: bool
) -> tuple[Tensor, Tensor]:
    """Return (n,) log-sum and, if requested, (n,) expected similarity over all blocks."""
    sum_over_block = positive_blocks.sum_over_block if exp_sum.candidates == "positives" else _sum_over_block
    log_sums, expected = [], []
    for block in key_blocks:
        log_sum, expected_similarity = sum_over_block(anchors, block, exp_sum, block is anchors, with_expectation)
        log_sums.append(log_sum)
        expected.append(expected_similarity)
    if len(key_blocks) == 1:
        return log_sums[0], expected[0]
    log_sums = torch.stack(log_sums)
    log_sum = torch.logsumexp(log_sums, 0)
    if not with_expectation:
        return log_sum, expected[0]
    # The softmax over all keys is a mixture of the softmax within each block.
    share_of_block = torch.exp(log_sums - log_sum.masked_fill(log_sum == -math.inf, 0.0))
    return log_sum, (share_of_block * torch.stack(expected)).sum(0)


def _with_scaled_gradient(block: KeyBlock, number: int, exp_sum: ExpSum) -> KeyBlock:
    """Return the block of one sum, its gradient multiplied by the logit scale that every similarity carries."""
    block = block.of_sum(number)
    if block.grad_log_sum is None:
        return block
    return block._replace(grad_log_sum=block.grad_log_sum * exp_sum.logit_scale)


# One block of keys


def _sum_over_block(
    anchors: KeyBlock, block: KeyBlock, exp_sum: ExpSum, is_self: bool, with_expectation: bool
) -> tuple[Tensor, Tensor]:
    order, anchors, block = _sort_by_group(anchors, block, exp_sum, is_self)
    sums = _RunningSums(anchors.z, exp_sum.needs_max_shift, with_expectation)
    for tile in _tiles(anchors, block, exp_sum, is_self, with_expectation):
        mirrored = is_self and tile.rows != tile.keys
        sums.add(tile, mirrored)
    log_sum, expected = sums.log_sum(), sums.expected_similarity()
    if order is None:
        return log_sum, expected
    if with_expectation:
        expected = _unsort(expected, order)
    return _unsort(log_sum, order), expected


def _add_gradient(grad: Tensor, anchors: KeyBlock, block: KeyBlock, exp_sum: ExpSum, is_self: bool) -> None:
    order, anchors, block = _sort_by_group(anchors, block, exp_sum, is_self)
    grad_in_order = grad
    if order is not None:
        grad_in_order = torch.zeros_like(grad)
    if exp_sum.needs_max_shift:
        weights_of = _ShiftedWeights(anchors, block)
    else:
        weights_of = _Weights(anchors, block, is_self)
    for tile in _tiles(anchors, block, exp_sum, is_self):
        weights = weights_of(tile)
        grad_in_order[tile.rows].addmm_(weights, block.z[tile.keys])
        if is_self and tile.rows != tile.keys:
            grad_in_order[tile.keys].addmm_(weights.T, anchors.z[tile.rows])
    if order is not None:
        grad.index_add_(0, order, grad_in_order)


def _sort_by_group(
    anchors: KeyBlock, block: KeyBlock, exp_sum: ExpSum, is_self: bool
) -> tuple[Tensor | None, KeyBlock, KeyBlock]:
    """Return the order that sorts the anchors by group, and both blocks sorted; None and both unsorted if all are candidates.

    In sorted blocks, few tiles hold pairs of one group and have to be masked.
    """
    if exp_sum.candidates == "others":
        return None, anchors, block
    order = anchors.group.argsort(stable=True)
    sorted_anchors = anchors.select(order)
    if is_self:
        return order, sorted_anchors, sorted_anchors
    return order, sorted_anchors, block.select(block.group.argsort(stable=True))


def _unsort(values: Tensor, order: Tensor) -> Tensor:
    return torch.empty_like(values).index_copy_(0, order, values)


# Tiles


class _Tile(NamedTuple):
    """Rows of the anchors against keys of a block: logits, and similarities if requested."""

    rows: slice
    keys: slice
    logits: Tensor
    similarity: Tensor | None


def _tiles(
    anchors: KeyBlock, block: KeyBlock, exp_sum: ExpSum, is_self: bool, with_similarity: bool = False
) -> Iterator[_Tile]:
    """Yield all tiles, or of the anchors with themselves the upper half. The logits of all tiles share one buffer."""
    scaled_rows = anchors.z * exp_sum.logit_scale
    buffer = _tile_buffer(anchors, block)
    needs_mask = _GroupOverlap(anchors.group, block.group) if exp_sum.candidates == "negatives" else None
    key_slices = _tile_slices(len(block.z))
    for rows in _tile_slices(len(anchors.z)):
        for keys in key_slices:
            # Tiles below the diagonal mirror those above it.
            if is_self and keys.start < rows.start:
                continue
            key_rows = block.z[keys]
            logits = _view_of_buffer(buffer, rows, keys)
            torch.mm(scaled_rows[rows], key_rows.T, out=logits)
            # From the rows themselves and not logits / scale, which may be 0.
            similarity = anchors.z[rows] @ key_rows.T if with_similarity else None
            if is_self and rows == keys:
                logits.fill_diagonal_(-math.inf)
            if needs_mask is not None and needs_mask(rows, keys):
                excluded = excluded_pairs(anchors.select(rows), block.select(keys), exp_sum.candidates)
                logits.masked_fill_(excluded, -math.inf)
            yield _Tile(rows, keys, logits, similarity)


def _tile_slices(count: int) -> list[slice]:
    return [slice(start, min(start + TILE, count)) for start in range(0, count, TILE)]


def _tile_buffer(anchors: KeyBlock, block: KeyBlock) -> Tensor:
    return anchors.z.new_empty(min(TILE, len(anchors.z)) * min(TILE, len(block.z)))


def _view_of_buffer(buffer: Tensor, rows: slice, keys: slice) -> Tensor:
    height, width = rows.stop - rows.start, keys.stop - keys.start
    return buffer[: height * width].view(height, width)


class _GroupOverlap:
    """Whether a tile of sorted rows and sorted keys may hold a pair of one group."""

    def __init__(self, row_groups: Tensor, key_groups: Tensor) -> None:
        # Reading groups from a GPU would wait for it: there, every tile may.
        self.is_unknown = row_groups.is_cuda
        if not self.is_unknown:
            self.row_groups, self.key_groups = row_groups.tolist(), key_groups.tolist()

    def __call__(self, rows: slice, keys: slice) -> bool:
        if self.is_unknown:
            return True
        # Two intervals of sorted numbers overlap if each starts before the other ends.
        rows_start_below = self.row_groups[rows.start] <= self.key_groups[keys.stop - 1]
        keys_start_below = self.key_groups[keys.start] <= self.row_groups[rows.stop - 1]
        return rows_start_below and keys_start_below


# What is computed from a tile


class _RunningSums:
    """Sums of exponentials over tile after tile, for n anchors.

    Args:
        rows: (n, D) the anchors.
        needs_max_shift: exponentials are of logits minus the largest one so far, and sums are rescaled when it grows.
        with_expectation: similarities weighted by the exponentials are summed as well.
    """

    def __init__(self, rows: Tensor, needs_max_shift: bool, with_expectation: bool) -> None:
        count = len(rows)
        self.total = rows.new_zeros(count)
        self.largest_logit = rows.new_full((count,), -math.inf) if needs_max_shift else None
        self.weighted_similarity = rows.new_zeros(count) if with_expectation else None

    def add(self, tile: _Tile, mirrored: bool) -> None:
        """Add a tile to the sums of its rows and, if mirrored, to those of its keys. Overwrites the tile."""
        if self.largest_logit is not None:
            self._add_shifted(tile, tile.rows, dim=1)
            if mirrored:
                self._add_shifted(tile, tile.keys, dim=0)
            return
        exponentials = tile.logits.exp_()
        self.total[tile.rows] += exponentials.sum(1)
        if mirrored:
            self.total[tile.keys] += exponentials.sum(0)
        if self.weighted_similarity is None:
            return
        weighted = tile.similarity.mul_(exponentials)
        self.weighted_similarity[tile.rows] += weighted.sum(1)
        if mirrored:
            self.weighted_similarity[tile.keys] += weighted.sum(0)

    def _add_shifted(self, tile: _Tile, anchors: slice, dim: int) -> None:
        before = self.largest_logit[anchors]
        largest_logit = torch.maximum(before, tile.logits.amax(dim))
        shift = largest_logit.masked_fill(largest_logit == -math.inf, 0.0)
        exponentials = (tile.logits - shift.unsqueeze(dim)).exp_()
        # The sums so far are relative to the previous largest logit.
        rescale = (before - shift).exp_()
        self.total[anchors] = self.total[anchors] * rescale + exponentials.sum(dim)
        if self.weighted_similarity is not None:
            weighted = exponentials.mul_(tile.similarity).sum(dim)
            self.weighted_similarity[anchors] = self.weighted_similarity[anchors] * rescale + weighted
        self.largest_logit[anchors] = largest_logit

    def log_sum(self) -> Tensor:
        if self.largest_logit is None:
            return self.total.log()
        return self.largest_logit + self.total.log()

    def expected_similarity(self) -> Tensor:
        if self.weighted_similarity is None:
            return self.total.new_empty(0)
        return self.weighted_similarity / self.total.masked_fill(self.total == 0, 1.0)


class _Weights:
    """H of a tile (see `operator.py`) as exp(x_ij) (u_i + u_j) with u = g exp(-lse): one exponential a pair."""

    def __init__(self, anchors: KeyBlock, block: KeyBlock, is_self: bool) -> None:
        # Only used without a max shift, where log-sums are small enough for this exponential.
        self.row_weight = anchors.grad_log_sum * torch.exp(-anchors.log_sum)
        self.key_weight = None
        if is_self:
            self.key_weight = self.row_weight
        elif block.grad_log_sum is not None:
            self.key_weight = block.grad_log_sum * torch.exp(-block.log_sum)
        if self.key_weight is not None:
            self.buffer = _tile_buffer(anchors, block)

    def __call__(self, tile: _Tile) -> Tensor:
        """Return the weights, written over the logits."""
        row_weight = self.row_weight[tile.rows, None]
        if self.key_weight is None:
            return tile.logits.exp_().mul_(row_weight)
        weight = _view_of_buffer(self.buffer, tile.rows, tile.keys)
        torch.add(row_weight, self.key_weight[None, tile.keys], out=weight)
        return tile.logits.exp_().mul_(weight)


class _ShiftedWeights:
    """H of a tile as g_i exp(x_ij - lse_i) + g_j exp(x_ij - lse_j): no exponent is above 0, whatever the scale."""

    def __init__(self, anchors: KeyBlock, block: KeyBlock) -> None:
        self.anchors = anchors
        self.block = block

    def __call__(self, tile: _Tile) -> Tensor:
        """Return the weights. Overwrites the logits."""
        anchors, block = self.anchors, self.block
        as_anchor = (tile.logits - anchors.log_sum[tile.rows, None]).exp_().mul_(anchors.grad_log_sum[tile.rows, None])
        if block.grad_log_sum is None:
            return as_anchor
        as_candidate = tile.logits.sub_(block.log_sum[None, tile.keys]).exp_()
        return as_anchor.add_(as_candidate.mul_(block.grad_log_sum[None, tile.keys]))
