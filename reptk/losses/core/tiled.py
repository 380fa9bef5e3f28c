"""Log-sum-exp in tiles, in plain PyTorch: exact, on any device, with memory for the rows and one tile.

Similarity is symmetric, so a tile (I, J) of the own rows serves I by its row sums and J by its column sums, and only
tiles on and above the diagonal are made: 4 N^2 D operations for value and gradient together, where a dense matrix with
autograd takes 6. Sums over positives alone are taken in blocks of rows that share an id, so their cost is that of the
pairs there are.
"""

import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from reptk.losses.core.key_blocks import Columns, Forward, Term, excluded

TILE = 512
"""Rows and columns of a tile; 512 x 512 in float32 is 1 MB, which stays in a core's cache."""

BLOCK_PAIRS = 2**18
"""Pairs handled at once where rows that share an id are compared."""


def forward(own: Columns, columns: list[Columns], terms: list[Term], learned: bool) -> Forward:
    """See `columns.Forward`. Keeps nothing."""
    made = [_one_term(own, columns, term, learned) for term in terms]
    log_sum = torch.stack([log_sum for log_sum, _ in made])
    mean = torch.stack([mean for _, mean in made]) if learned else log_sum.new_empty(0)
    return Forward(log_sum, mean, log_sum.new_empty(0))


def backward(own: Columns, columns: list[Columns], terms: list[Term], kept: Tensor) -> Tensor:
    """Gradient of the own rows (n, D)."""
    gradient = torch.zeros_like(own.z)
    for number, term in enumerate(terms):
        add = _add_positives_gradient if term.over == "positives" else _add_all_pairs_gradient
        anchors = _of_term(own, number)._replace(g=own.g[number] * term.slope)
        for side in columns:
            is_self = side is own
            other = anchors if is_self else _of_term(side, number)
            if not is_self and other.g is not None:
                other = other._replace(g=other.g * term.slope)
            add(gradient, anchors, other, term, is_self)
    return gradient


def _one_term(own: Columns, columns: list[Columns], term: Term, learned: bool) -> tuple[Tensor, Tensor]:
    """(n,) log-sum and, if asked for, mean over all columns."""
    one_side = _positives if term.over == "positives" else _all_pairs
    parts = [one_side(own, side, term, side is own, learned) for side in columns]
    if len(parts) == 1:
        return parts[0]
    log_sums, means = map(torch.stack, zip(*parts, strict=True))
    log_sum = torch.logsumexp(log_sums, 0)
    shares = torch.exp(log_sums - log_sum.masked_fill(log_sum == -math.inf, 0.0))
    return log_sum, (shares * means).sum(0) if learned else means[0]


def _of_term(side: Columns, number: int) -> Columns:
    return side if side.g is None else side._replace(g=side.g[number], lse=side.lse[number])


# All others, or all negatives


def _all_pairs(own: Columns, side: Columns, term: Term, is_self: bool, learned: bool) -> tuple[Tensor, Tensor]:
    order, own, side = _by_group(own, side, term.over, is_self)
    sums = _Sums(len(own.z), own.z, term.tame, learned)
    for i, j, tile, similarity in _tiles(own, side, term, is_self, learned):
        sums.add(i, j, tile, similarity, columns_too=is_self and i != j)
    log_sum, mean = sums.log_sum(), sums.mean()
    return _in_order(log_sum, order), _in_order(mean, order) if learned else mean


def _add_all_pairs_gradient(gradient: Tensor, own: Columns, side: Columns, term: Term, is_self: bool) -> None:
    order, own, side = _by_group(own, side, term.over, is_self)
    made = gradient if order is None else torch.zeros_like(gradient)
    weigh = _tame_weights(own, side) if term.tame else _weights(own, side)
    for i, j, tile, _ in _tiles(own, side, term, is_self):
        weights = weigh(i, j, tile)
        made[i].addmm_(weights, side.z[j])
        if is_self and i != j:
            made[j].addmm_(weights.T, own.z[i])
    if order is not None:
        gradient.index_add_(0, order, made)


def _tiles(
    own: Columns, side: Columns, term: Term, is_self: bool, learned: bool = False
) -> Iterator[tuple[slice, slice, Tensor, Tensor | None]]:
    """(rows, columns, logits, similarity if asked for) of every tile, of own rows with themselves only the upper half.

    One buffer serves all tiles.
    """
    scaled = own.z * term.slope
    buffer = own.z.new_empty(min(TILE, len(own.z)) * min(TILE, len(side.z)))
    mixed = _mixed(own, side) if term.over == "negatives" else None
    for i, j in product(_cuts(len(own.z)), _cuts(len(side.z))):
        if is_self and j.start < i.start:
            continue
        rows, others = scaled[i], side.z[j]
        tile = buffer[: len(rows) * len(others)].view(len(rows), len(others))
        torch.mm(rows, others.T, out=tile)
        similarity = own.z[i] @ others.T if learned else None
        if is_self and i == j:
            tile.fill_diagonal_(-math.inf)
        if mixed is not None and mixed(i, j):
            tile.masked_fill_(excluded(_part(own, i), _part(side, j), term.over), -math.inf)
        yield i, j, tile, similarity


class _Sums:
    """Sums of exponentials by row, tile after tile, shifted by the largest logit so far unless the slope is tame."""

    def __init__(self, count: int, like: Tensor, tame: bool, learned: bool) -> None:
        self.total = like.new_zeros(count)
        self.top = None if tame else like.new_full((count,), -math.inf)
        self.moment = like.new_zeros(count) if learned else None

    def add(self, i: slice, j: slice, tile: Tensor, similarity: Tensor | None, columns_too: bool) -> None:
        if self.top is not None:
            self._add_shifted(i, tile, similarity, 1)
            if columns_too:
                self._add_shifted(j, tile, similarity, 0)
            return
        exponentials = tile.exp_()
        self.total[i] += exponentials.sum(1)
        if columns_too:
            self.total[j] += exponentials.sum(0)
        if similarity is not None:
            weighted = similarity.mul_(exponentials)
            self.moment[i] += weighted.sum(1)
            if columns_too:
                self.moment[j] += weighted.sum(0)

    def _add_shifted(self, at: slice, tile: Tensor, similarity: Tensor | None, dim: int) -> None:
        top = torch.maximum(self.top[at], tile.amax(dim))
        shift = top.masked_fill(top == -math.inf, 0.0)
        exponentials = (tile - shift.unsqueeze(dim)).exp_()
        fade = (self.top[at] - shift).exp_()
        self.total[at] = self.total[at] * fade + exponentials.sum(dim)
        if similarity is not None:
            self.moment[at] = self.moment[at] * fade + exponentials.mul_(similarity).sum(dim)
        self.top[at] = top

    def log_sum(self) -> Tensor:
        return self.total.log() if self.top is None else self.top + self.total.log()

    def mean(self) -> Tensor:
        if self.moment is None:
            return self.total.new_empty(0)
        return self.moment / self.total.masked_fill(self.total == 0, 1.0)


def _tame_weights(own: Columns, side: Columns) -> Callable[[slice, slice, Tensor], Tensor]:
    """tile of logits -> H: exp(x) (u_i + u_j), u = g exp(-lse). One exponential a pair."""
    u = own.g * torch.exp(-own.lse)
    if side.g is None:
        return lambda i, _, tile: tile.exp_().mul_(u[i, None])
    v = u if side is own else side.g * torch.exp(-side.lse)
    both = own.z.new_empty(min(TILE, len(own.z)) * min(TILE, len(side.z)))

    def weights(i: slice, j: slice, tile: Tensor) -> Tensor:
        sums = both[: tile.numel()].view_as(tile)
        torch.add(u[i, None], v[None, j], out=sums)
        return tile.exp_().mul_(sums)

    return weights


def _weights(own: Columns, side: Columns) -> Callable[[slice, slice, Tensor], Tensor]:
    """tile of logits -> H: g_i exp(x - lse_i) + g_j exp(x - lse_j). No exponent is above 0, whatever the slope."""

    def weights(i: slice, j: slice, tile: Tensor) -> Tensor:
        as_anchor = (tile - own.lse[i, None]).exp_().mul_(own.g[i, None])
        if side.g is None:
            return as_anchor
        return as_anchor.add_(tile.sub_(side.lse[None, j]).exp_().mul_(side.g[None, j]))

    return weights


def _by_group(own: Columns, side: Columns, over: str, is_self: bool) -> tuple[Tensor | None, Columns, Columns]:
    """Rows sorted by group where groups matter, so that few tiles hold pairs of one group; and the rows' order."""
    if over == "others":
        return None, own, side
    order = own.group.argsort(stable=True)
    own = _part(own, order)
    return order, own, own if is_self else _part(side, side.group.argsort(stable=True))


def _mixed(own: Columns, side: Columns) -> Callable[[slice, slice], bool]:
    """Whether a tile of sorted rows and columns may hold a pair of one group. On a GPU, which would have to be asked: yes."""
    if own.group.is_cuda:
        return lambda i, j: True
    rows, others = own.group.tolist(), side.group.tolist()

    def mixed(i: slice, j: slice) -> bool:
        return rows[i.start] <= others[j.stop - 1] and others[j.start] <= rows[i.stop - 1]

    return mixed


def _cuts(count: int) -> list[slice]:
    return [slice(start, min(start + TILE, count)) for start in range(0, count, TILE)]


def _part(columns: Columns, at: slice | Tensor) -> Columns:
    return Columns(*(None if values is None else values[at] for values in columns))


def _in_order(values: Tensor, order: Tensor | None) -> Tensor:
    return values if order is None else torch.empty_like(values).index_copy_(0, order, values)


# Positives alone


class _Block(NamedTuple):
    """Rows that share an id against their columns of that id, G such groups of like size stacked.

    rows (G, a) and columns (G, b) are where they stand; x (G, a, D) and y (G, b, D) what they are; counts (G, a) tells
    rows from padding; logits (G, a, b) are minus infinity for padding and for a row with itself.
    """

    rows: Tensor
    columns: Tensor
    x: Tensor
    y: Tensor
    counts: Tensor
    logits: Tensor


def _positives(own: Columns, side: Columns, term: Term, is_self: bool, learned: bool) -> tuple[Tensor, Tensor]:
    log_sum = own.z.new_full((len(own.z),), -math.inf)
    mean = torch.zeros_like(log_sum) if learned else own.z.new_empty(0)
    for block in _blocks(own, side, term, is_self):
        top = block.logits.amax(2, keepdim=True)
        top.masked_fill_(top == -math.inf, 0.0)
        exponentials = block.logits.sub_(top).exp_()
        total = exponentials.sum(2)
        at = block.rows[block.counts]
        log_sum[at] = (top.squeeze(2) + total.log())[block.counts]
        if learned:
            shares = exponentials.div_(total.masked_fill(total == 0, 1.0)[:, :, None])
            mean[at] = (shares * torch.bmm(block.x, block.y.mT)).sum(2)[block.counts]
    return log_sum, mean


def _add_positives_gradient(gradient: Tensor, own: Columns, side: Columns, term: Term, is_self: bool) -> None:
    for block in _blocks(own, side, term, is_self):
        weights = (block.logits - own.lse[block.rows][:, :, None]).exp_().mul_(own.g[block.rows][:, :, None])
        if side.g is not None:
            as_candidate = block.logits.sub_(side.lse[block.columns][:, None, :]).exp_()
            weights += as_candidate.mul_(side.g[block.columns][:, None, :])
        # The weights of padding are 0.
        gradient.index_add_(0, block.rows.flatten(), torch.bmm(weights, block.y).flatten(0, 1))


def _blocks(own: Columns, side: Columns, term: Term, is_self: bool) -> Iterator[_Block]:
    """Every row that has a column of its id, once, with all of them."""
    row_order, column_order = own.group.argsort(stable=True), side.group.argsort(stable=True)
    groups, heights = own.group[row_order].unique_consecutive(return_counts=True)
    side_groups = side.group[column_order]
    left = torch.searchsorted(side_groups, groups)
    widths = torch.searchsorted(side_groups, groups, right=True) - left
    tops = heights.cumsum(0) - heights
    kept = widths > (1 if is_self else 0)
    blocks = _split(torch.stack([tops, heights, left, widths], 1)[kept].cpu())
    # Blocks of like size go together: at most half of a stack's height and width is padding.
    kind = (64 * blocks[:, 1].double().log2().ceil() + blocks[:, 3].double().log2().ceil()).long()
    for value in kind.unique().tolist():
        alike = blocks[kind == value]
        height, width = int(alike[:, 1].max()), int(alike[:, 3].max())
        for stack in alike.split(max(1, BLOCK_PAIRS // (height * width))):
            yield _stacked(stack, height, width, (own, row_order), (side, column_order), term, is_self)


def _stacked(
    stack: Tensor,
    height: int,
    width: int,
    own: tuple[Columns, Tensor],
    side: tuple[Columns, Tensor],
    term: Term,
    is_self: bool,
) -> _Block:
    device = own[1].device
    top, high, left, wide = stack.to(device)[:, :, None].unbind(1)
    rows, x, counts = _picked(*own, top, high, height)
    whole = is_self and torch.equal(stack[:, :2], stack[:, 2:])
    columns, y, column_counts = (rows, x, counts) if whole else _picked(*side, left, wide, width)
    logits = torch.bmm(x, y.mT).mul_(term.slope)
    logits.masked_fill_(~(counts[:, :, None] & column_counts[:, None, :]), -math.inf)
    if is_self:
        logits.masked_fill_(rows[:, :, None] == columns[:, None, :], -math.inf)
    return _Block(rows, columns, x, y, counts, logits)


def _picked(side: Columns, order: Tensor, first: Tensor, count: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """(G, most) numbers of rows that follow each other in the order, the rows, and which of them are no padding."""
    at = torch.arange(most, device=order.device)
    numbers = order[first + torch.minimum(at, count - 1)]
    return numbers, side.z.index_select(0, numbers.flatten()).view(*numbers.shape, -1), at < count


def _split(blocks: Tensor) -> Tensor:
    """(G, 4) of top, height, left, width: blocks of too many pairs are cut into strips of fewer rows."""
    strips = []
    for top, height, left, width in blocks[blocks[:, 1] * blocks[:, 3] > BLOCK_PAIRS].tolist():
        step = max(1, BLOCK_PAIRS // width)
        strips += [(top + at, min(step, height - at), left, width) for at in range(0, height, step)]
    small = blocks[blocks[:, 1] * blocks[:, 3] <= BLOCK_PAIRS]
    return torch.cat([small, torch.tensor(strips, dtype=blocks.dtype).view(-1, 4)])
