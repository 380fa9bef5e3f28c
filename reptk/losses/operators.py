"""The three operators under every loss, and the choice of how they are computed.

    reptk::unit_rows            rows of unit length
    reptk::mean_over_positives  mean similarity of each row to its positives, from class sums: O(N D)
    reptk::log_sum_exp          log sum_j exp(slope * z_i . z_j) over positives, negatives or all others

The third is the expensive one and has three implementations with one interface (`dense.py`, `tiled.py`, `triton.py`);
`implementation("tiled")` forces one, otherwise device and size decide. Each is a `torch.library` operator, so that
`torch.compile` takes a loss as one graph however many tiles it has.

The gradient needs one number per row, L_i = log_sum_exp_i, and nothing of size N x N: with g_i = dloss/dL_i and
x_ij = slope * s_ij,

    dloss/dz_i = slope * sum_j H_ij z_j,      H_ij = g_i exp(x_ij - L_i) + g_j exp(x_ij - L_j),   H_ii = 0

H is symmetric and holds both roles of a row, as an anchor and as a candidate of other anchors. Under `own_rows`, a rank
computes L and dloss/dz for its own rows alone. L is gathered in the forward pass; g then is the same on every rank, and
the backward pass needs no communication.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from reptk import dist
from reptk.errors import NumericalError
from reptk.losses import dense, tiled
from reptk.losses.columns import Columns

How = Literal["auto", "dense", "tiled", "triton"]

DENSE_PAIRS = 1024**2
"""Up to so many pairs one matrix is as fast as tiles, and so small that it can be kept for the backward pass."""

_how: ContextVar[How] = ContextVar("how", default="auto")
_own: ContextVar[tuple[int, int] | None] = ContextVar("own", default=None)


@contextmanager
def implementation(how: How) -> Iterator[None]:
    """Compute row sums in one way inside the block: "dense", "tiled", "triton", or "auto" (by device and size).

    All give the same numbers. "dense" keeps an N x N matrix; "tiled" runs anywhere; "triton" needs CUDA.

    Raises:
        ValueError: unknown name.
    """
    if how not in get_args(How):
        raise ValueError(f"implementation must be one of {', '.join(get_args(How))}, got {how!r}")
    token = _how.set(how)
    try:
        yield
    finally:
        _how.reset(token)


@contextmanager
def own_rows(first: int, count: int) -> Iterator[None]:
    """Inside the block this rank computes row sums for rows first .. first + count - 1 and gathers the others'.

    Every rank has to run the same loss on the same N rows, `count` each. The gradient is that of this rank's rows and
    zero for all others.
    """
    token = _own.set((first, count))
    try:
        yield
    finally:
        _own.reset(token)


class Groups:
    """Which rows share an id.

    Args:
        ids: (N + K,) integers, those of the keys last.
        rows: N.

    Attributes:
        number: (N + K,) the ids renumbered from 0, in their order.
        positives: (N,) how many others share the row's id, keys included.
    """

    def __init__(self, ids: Tensor, rows: int) -> None:
        in_order, order = ids.sort()
        starts = torch.zeros_like(order)
        starts[1:] = in_order[1:] != in_order[:-1]
        self.number = torch.empty_like(order).scatter_(0, order, starts.cumsum(0))
        sizes = torch.zeros_like(order).scatter_add_(0, self.number, torch.ones_like(order))
        self.positives = sizes[self.number[:rows]] - 1


def normalize(z: Tensor) -> Tensor:
    """Rows of unit length, in float32 or wider, whatever their scale (no overflow, no underflow); zero rows stay zero."""
    return _unit_rows(z)[0]


def mean_over_positives(unit: Tensor, keys: Tensor, groups: Groups) -> Tensor:
    """(N,) mean similarity of unit (N, D) rows to their positives among themselves and the keys (K, D); 0 without any."""
    return _mean_over_positives(unit, keys, groups.number, groups.positives)


def log_sum_exp(
    unit: Tensor, keys: Tensor, groups: Groups, slope: float | Tensor, over: str, product: torch.dtype | None = None
) -> Tensor:
    """(N,) log of the sum of exp(slope * similarity) over "positives", "negatives" or "others"; minus infinity for none.

    Args:
        unit: (N, D) rows.
        keys: (K, D) further rows, K may be 0.
        groups: of rows and keys.
        slope: a number, or a scalar tensor that gets its gradient.
        over: whom to sum over.
        product: bfloat16 or float16, the type of the rows in products on a GPU; None: their own.
    """
    first, count = _own.get() or (0, len(unit))
    learned = isinstance(slope, Tensor) and slope.requires_grad
    if not isinstance(slope, Tensor):
        slope = torch.tensor(slope, dtype=torch.float64)
    made = _log_sum_exp(unit, keys, groups.number, slope, over, first, count, learned, _how.get(), product)
    return made[0]


# Unit rows


@torch.library.custom_op("reptk::unit_rows", mutates_args=())
def _unit_rows(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    wide = z.to(torch.promote_types(z.dtype, torch.float32))
    largest = torch.linalg.vector_norm(wide, torch.inf, dim=1, keepdim=True)
    largest.masked_fill_(largest == 0, 1.0)
    unit = wide / largest
    norm = torch.linalg.vector_norm(unit, dim=1, keepdim=True)
    norm.masked_fill_(norm == 0, 1.0)
    return unit.div_(norm), largest, norm


@_unit_rows.register_fake
def _(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.promote_types(z.dtype, torch.float32)
    shape, one = (z.shape[0], z.shape[1]), (z.shape[0], 1)
    return z.new_empty(shape, dtype=wide), z.new_empty(one, dtype=wide), z.new_empty(one, dtype=wide)


@torch.library.custom_op("reptk::unit_rows_backward", mutates_args=())
def _unit_rows_backward(gradient: Tensor, unit: Tensor, largest: Tensor, norm: Tensor) -> Tensor:
    # Divided one after the other: their product may overflow.
    along = (unit * gradient).sum(1, keepdim=True)
    return torch.addcmul(gradient, unit, along, value=-1).div_(norm).div_(largest)


@_unit_rows_backward.register_fake
def _(gradient: Tensor, unit: Tensor, largest: Tensor, norm: Tensor) -> Tensor:
    return torch.empty_like(unit)


def _keep_unit_rows(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output)
    ctx.dtype = inputs[0].dtype


def _differentiate_unit_rows(ctx: Any, gradient: Tensor, *_: Any) -> Tensor:
    return _unit_rows_backward(gradient, *ctx.saved_tensors).to(ctx.dtype)


# Mean over positives


@torch.library.custom_op("reptk::mean_over_positives", mutates_args=())
def _mean_over_positives(unit: Tensor, keys: Tensor, group: Tensor, positives: Tensor) -> Tensor:
    sums = _class_sums(unit, keys, group)
    total = unit.new_empty(len(unit))
    # In pieces: gathering every row's class sum at once would be a second and third N x D.
    for i in _pieces(len(unit)):
        total[i] = ((sums[group[: len(unit)][i]] - unit[i]) * unit[i]).sum(1)
    return torch.where(positives > 0, total / positives.clamp_min(1), 0.0)


@_mean_over_positives.register_fake
def _(unit: Tensor, keys: Tensor, group: Tensor, positives: Tensor) -> Tensor:
    return unit.new_empty(unit.shape[0])


@torch.library.custom_op("reptk::mean_over_positives_backward", mutates_args=())
def _mean_over_positives_backward(
    gradient: Tensor, unit: Tensor, keys: Tensor, group: Tensor, positives: Tensor
) -> Tensor:
    # z_i is an anchor, with weight c_i / positives, and a candidate of its class's anchors.
    weight = torch.where(positives > 0, gradient / positives.clamp_min(1), 0.0)
    number, row_group = _count(group), group[: len(unit)]
    anchors = unit.new_zeros(number, unit.shape[1])
    for i in _pieces(len(unit)):
        anchors.index_add_(0, row_group[i], unit[i] * weight[i, None])
    sums = _class_sums(unit, keys, group)
    made = torch.empty_like(unit)
    for i in _pieces(len(unit)):
        own, w = row_group[i], weight[i, None]
        made[i] = torch.addcmul(anchors[own], sums[own] - 2 * unit[i], w)
    return made


@_mean_over_positives_backward.register_fake
def _(gradient: Tensor, unit: Tensor, keys: Tensor, group: Tensor, positives: Tensor) -> Tensor:
    return torch.empty_like(unit)


def _keep_mean_over_positives(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate_mean_over_positives(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    return _mean_over_positives_backward(gradient, *ctx.saved_tensors), None, None, None


def _class_sums(unit: Tensor, keys: Tensor, group: Tensor) -> Tensor:
    sums = unit.new_zeros(_count(group), unit.shape[1]).index_add_(0, group[: len(unit)], unit)
    return sums.index_add_(0, group[len(unit) :], keys) if len(keys) else sums


def _count(group: Tensor) -> int:
    """Number of groups, or on a GPU, which would have to be waited for, the most there can be."""
    return len(group) if group.is_cuda else int(group.max()) + 1


def _pieces(count: int, size: int = 4096) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))


# Log-sum-exp


@torch.library.custom_op("reptk::log_sum_exp", mutates_args=())
def _log_sum_exp(
    unit: Tensor, keys: Tensor, group: Tensor, slope: Tensor, over: str, first: int, count: int, learned: bool,
    how: str, product: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    with torch.no_grad(), torch.autocast(unit.device.type, enabled=False):
        chosen = _chosen(how, unit, count, len(keys))
        own, columns = _sides(unit, keys, group, first, count)
        made = chosen.forward(own, columns, slope, over, learned, product)
        lse, mean = made.log_sum, made.mean
        if count < len(unit):
            lse, mean = dist.gather(lse), dist.gather(mean) if learned else mean
        if not lse.is_cuda and lse.isnan().any():
            raise NumericalError(_broken(unit, keys))
    return lse, mean, made.kept


@_log_sum_exp.register_fake
def _(unit, keys, group, slope, over, first, count, learned, how, product):  # type: ignore[no-untyped-def]
    rows, wide = unit.shape[0], unit.shape[0] + keys.shape[0]
    kept = unit.new_empty((count, wide) if _keeps(how, count * wide) else (0, 0))
    return unit.new_empty(rows), unit.new_empty(rows if learned else 0), kept


@torch.library.custom_op("reptk::log_sum_exp_backward", mutates_args=())
def _log_sum_exp_backward(
    gradient: Tensor, lse: Tensor, kept: Tensor, unit: Tensor, keys: Tensor, group: Tensor, slope: Tensor, over: str,
    first: int, count: int, how: str, product: torch.dtype | None,
) -> Tensor:  # fmt: skip
    with torch.no_grad(), torch.autocast(unit.device.type, enabled=False):
        # A row whose sum is empty has no gradient, and no finite logarithm to compute one with.
        empty = lse == -torch.inf
        g, lse = gradient.masked_fill(empty, 0.0), lse.masked_fill(empty, 0.0)
        chosen = _chosen(how, unit, count, len(keys))
        own, columns = _sides(unit, keys, group, first, count, g, lse)
        own_gradient = chosen.backward(own, columns, slope, over, kept, product)
        if count == len(unit):
            return own_gradient
        made = torch.zeros_like(unit)
        made[first : first + count] = own_gradient
        return made


@_log_sum_exp_backward.register_fake
def _(gradient, lse, kept, unit, keys, group, slope, over, first, count, how, product):  # type: ignore[no-untyped-def]
    return torch.empty_like(unit)


def _keep_log_sum_exp(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    unit, keys, group, slope, over, first, count, _, how, product = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output, unit, keys, group, slope)
    ctx.rest = (over, first, count, how, product)


def _differentiate_log_sum_exp(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Any, ...]:
    lse, mean, kept, unit, keys, group, slope = ctx.saved_tensors
    over, first, count, how, product = ctx.rest
    made = None
    if ctx.needs_input_grad[0]:
        made = _log_sum_exp_backward(gradient, lse, kept, unit, keys, group, slope, over, first, count, how, product)
    by_slope = (gradient * mean).sum().to(slope) if ctx.needs_input_grad[3] else None
    return made, None, None, by_slope, None, None, None, None, None, None


def _sides(
    unit: Tensor,
    keys: Tensor,
    group: Tensor,
    first: int,
    count: int,
    g: Tensor | None = None,
    lse: Tensor | None = None,
) -> tuple[Columns, list[Columns]]:
    """This rank's rows, and all that they are compared with: themselves, the other ranks' rows, the keys."""
    rows, last = len(unit), first + count

    def cut(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[first:last]

    def rest(values: Tensor | None) -> Tensor | None:
        return None if values is None else torch.cat([values[:first], values[last:rows]])

    own = Columns(unit[first:last], group[first:last], cut(g), cut(lse))
    columns = [own]
    if count < rows:
        columns.append(Columns(rest(unit), rest(group), rest(g), rest(lse)))
    if len(keys):
        columns.append(Columns(keys, group[rows:], None, None))
    return own, columns


def _chosen(how: str, unit: Tensor, count: int, keys: int) -> Any:
    if _keeps(how, count * (len(unit) + keys)):
        return dense
    if how == "triton" or (how == "auto" and unit.is_cuda and _triton_takes(unit)):
        from reptk.losses import triton

        return triton
    return tiled


def _keeps(how: str, pairs: int) -> bool:
    return how == "dense" or (how == "auto" and pairs <= DENSE_PAIRS)


def _triton_takes(unit: Tensor) -> bool:
    return unit.dtype == torch.float32 and unit.shape[1] <= 1024 and find_spec("triton") is not None


def _broken(unit: Tensor, keys: Tensor) -> str:
    for name, rows in (("z", unit), ("keys", keys)):
        broken = (~rows.isfinite().all(1)).nonzero().flatten().tolist()
        if broken:
            shown = ", ".join(map(str, broken[:5])) + (", ..." if len(broken) > 5 else "")
            return f"{len(broken)} of {len(rows)} rows of {name} hold NaN or infinity: {shown}"
    return "the temperature or a weight of the loss is NaN"


def _twice(*_: Any) -> None:
    raise RuntimeError(
        "reptk's losses have no second derivative: their backward pass keeps nothing to differentiate. Penalise a gradient "
        "by finite differences, or write that term in plain PyTorch"
    )


_unit_rows.register_autograd(_differentiate_unit_rows, setup_context=_keep_unit_rows)
_mean_over_positives.register_autograd(_differentiate_mean_over_positives, setup_context=_keep_mean_over_positives)
_log_sum_exp.register_autograd(_differentiate_log_sum_exp, setup_context=_keep_log_sum_exp)
for _backward in (_unit_rows_backward, _mean_over_positives_backward, _log_sum_exp_backward):
    _backward.register_autograd(_twice)
