"""Log-sum-exp over positives alone, in blocks of rows that share an id: its cost is that of the pairs there are."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from reptk.losses.core.key_blocks import ExpSum, KeyBlock

BLOCK_PAIRS = 2**18
"""Pairs whose logits are computed at once: 1 MB in float32, which stays in a core's cache."""


def sum_over_block(
    anchors: KeyBlock, block: KeyBlock, exp_sum: ExpSum, is_self: bool, with_expectation: bool
) -> tuple[Tensor, Tensor]:
    """Return (n,) log-sum and, if requested, (n,) expected similarity over the keys of each anchor's id."""
    log_sums = anchors.z.new_full((len(anchors.z),), -math.inf)
    expected = torch.zeros_like(log_sums) if with_expectation else anchors.z.new_empty(0)
    for stack in _stacks(anchors, block, exp_sum, is_self):
        shift = stack.logits.amax(2, keepdim=True)
        # Minus infinity minus itself would be NaN: a row whose keys are all padding is shifted by 0.
        shift.masked_fill_(shift == -math.inf, 0.0)
        exponentials = stack.logits.sub_(shift).exp_()
        total = exponentials.sum(2)
        row_index = stack.row_index[stack.is_row]
        log_sums[row_index] = (shift.squeeze(2) + total.log())[stack.is_row]
        if with_expectation:
            softmax = exponentials.div_(total.masked_fill(total == 0, 1.0)[:, :, None])
            similarity = torch.bmm(stack.rows, stack.keys.mT)
            expected[row_index] = (softmax * similarity).sum(2)[stack.is_row]
    return log_sums, expected


def add_gradient(grad: Tensor, anchors: KeyBlock, block: KeyBlock, exp_sum: ExpSum, is_self: bool) -> None:
    """Add the gradient of the anchors (n, D) to `grad`; both blocks' gradients carry the logit scale already."""
    for stack in _stacks(anchors, block, exp_sum, is_self):
        row_index, key_index = stack.row_index, stack.key_index
        weights = (stack.logits - anchors.log_sum[row_index][:, :, None]).exp_()
        weights.mul_(anchors.grad_log_sum[row_index][:, :, None])
        if block.grad_log_sum is not None:
            as_candidate = stack.logits.sub_(block.log_sum[key_index][:, None, :]).exp_()
            weights += as_candidate.mul_(block.grad_log_sum[key_index][:, None, :])
        # The weights of padding are 0.
        grad.index_add_(0, row_index.flatten(), torch.bmm(weights, stack.keys).flatten(0, 1))


class _Stack(NamedTuple):
    """G groups of similar size, each as its a rows against its b keys, with padding.

    Attributes:
        row_index: (G, a) where the rows are among the anchors.
        key_index: (G, b) where the keys are in their block.
        rows: (G, a, D).
        keys: (G, b, D).
        is_row: (G, a) False for padding.
        logits: (G, a, b) minus infinity for padding and for a row with itself.
    """

    row_index: Tensor
    key_index: Tensor
    rows: Tensor
    keys: Tensor
    is_row: Tensor
    logits: Tensor


class _SortedBlock(NamedTuple):
    """A block and the order (M,) that sorts its rows by group."""

    block: KeyBlock
    order: Tensor


def _stacks(anchors: KeyBlock, block: KeyBlock, exp_sum: ExpSum, is_self: bool) -> Iterator[_Stack]:
    """Yield stacks in which every anchor that has a key of its id occurs once, with all of these keys."""
    sorted_anchors = _SortedBlock(anchors, anchors.group.argsort(stable=True))
    sorted_keys = _SortedBlock(block, block.group.argsort(stable=True))
    extents = _split_large(_extents_of_groups(sorted_anchors, sorted_keys, is_self))
    _, heights, _, widths = extents.unbind(1)
    # Groups whose height and width round to the same powers of 2: at most half of each is padding.
    # Logarithms of sizes are below 64, so the number is a different one for every pair of them.
    size_class = (64 * heights.double().log2().ceil() + widths.double().log2().ceil()).long()
    for value in size_class.unique().tolist():
        similar = extents[size_class == value]
        height, width = int(similar[:, 1].max()), int(similar[:, 3].max())
        groups_at_once = max(1, BLOCK_PAIRS // (height * width))
        for stacked in similar.split(groups_at_once):
            yield _stack(stacked, (height, width), sorted_anchors, sorted_keys, exp_sum, is_self)


def _extents_of_groups(sorted_anchors: _SortedBlock, sorted_keys: _SortedBlock, is_self: bool) -> Tensor:
    """Return, on the CPU, (G, 4) for every group with pairs: its first anchor and number of anchors, first key and number
    of keys, as places in the sorted orders."""
    anchor_groups = sorted_anchors.block.group[sorted_anchors.order]
    key_groups = sorted_keys.block.group[sorted_keys.order]
    groups, heights = anchor_groups.unique_consecutive(return_counts=True)
    first_anchors = heights.cumsum(0) - heights
    first_keys = torch.searchsorted(key_groups, groups)
    widths = torch.searchsorted(key_groups, groups, right=True) - first_keys
    # Among the anchors' own keys, one is the anchor itself.
    min_width = 2 if is_self else 1
    has_pairs = widths >= min_width
    # On the CPU, since the shapes of the stacks depend on them.
    return torch.stack([first_anchors, heights, first_keys, widths], 1)[has_pairs].cpu()


def _split_large(extents: Tensor) -> Tensor:
    """Cut groups of more than BLOCK_PAIRS pairs into strips of fewer anchors."""
    is_large = extents[:, 1] * extents[:, 3] > BLOCK_PAIRS
    strips = []
    for first_anchor, height, first_key, width in extents[is_large].tolist():
        strip_height = max(1, BLOCK_PAIRS // width)
        for start in range(0, height, strip_height):
            strips.append((first_anchor + start, min(strip_height, height - start), first_key, width))
    return torch.cat([extents[~is_large], torch.tensor(strips, dtype=extents.dtype).view(-1, 4)])


def _stack(
    extents: Tensor,
    padded_size: tuple[int, int],
    sorted_anchors: _SortedBlock,
    sorted_keys: _SortedBlock,
    exp_sum: ExpSum,
    is_self: bool,
) -> _Stack:
    height, width = padded_size
    device_extents = extents.to(sorted_anchors.order.device)
    row_index, rows, is_row = _pick(sorted_anchors, device_extents[:, :2], height)
    # Rows and keys of whole groups are the same; those of a strip of a large group are not.
    if is_self and torch.equal(extents[:, :2], extents[:, 2:]):
        key_index, keys, is_key = row_index, rows, is_row
    else:
        key_index, keys, is_key = _pick(sorted_keys, device_extents[:, 2:], width)
    logits = torch.bmm(rows, keys.mT).mul_(exp_sum.logit_scale)
    logits.masked_fill_(~(is_row[:, :, None] & is_key[:, None, :]), -math.inf)
    if is_self:
        logits.masked_fill_(row_index[:, :, None] == key_index[:, None, :], -math.inf)
    return _Stack(row_index, key_index, rows, keys, is_row, logits)


def _pick(source: _SortedBlock, extents: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows that follow each other in the sorted order, each group padded to `length` by its last row.

    Args:
        source: the sorted block.
        extents: (G, 2) first place and number of rows of each group.
        length: at least the longest group's number of rows.

    Returns:
        (G, length) places in the block, (G, length, D) rows, (G, length) which are no padding.
    """
    first, count = extents[:, :, None].unbind(1)
    offset = torch.arange(length, device=source.order.device)
    # Padding repeats the last row, so that every index is valid; the caller masks it.
    index = source.order[first + torch.minimum(offset, count - 1)]
    rows = source.block.z.index_select(0, index.flatten()).view(*index.shape, -1)
    return index, rows, offset < count
