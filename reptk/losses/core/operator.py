"""The operator under every loss, `reptk::row_statistics`, and the choice of how it is computed.

For rows z_i brought to unit length and s_ij = z_i . z_j it gives, for every row i,

    mean_i    = mean of s_ip over the positives p of i                      from class sums: O(N D)
    L_i       = log sum_j exp(slope * s_ij), j over positives, negatives or all others, for any number of such terms

The second is the expensive one and has three implementations with one interface (`dense.py`, `tiled.py`, `triton_kernels.py`);
`implementation("tiled")` forces one, otherwise device and size decide. It is a `torch.library` operator, so that
`torch.compile` takes a loss as one graph however many tiles it has; without a compiler the same functions run as a
`torch.autograd.Function`, which costs a small batch less time.

The gradient needs one number per row and term, L_i, and nothing of size N x N: with g_i = dloss/dL_i and
x_ij = slope * s_ij,

    dloss/dz_i = slope * sum_j H_ij z_j,      H_ij = g_i exp(x_ij - L_i) + g_j exp(x_ij - L_j),   H_ii = 0

H is symmetric and holds both roles of a row, as an anchor and as a candidate of other anchors. Under `local_rows`, a rank
computes L and dloss/dz for its own rows alone. L is gathered in the forward pass; g then is the same on every rank, and
the backward pass needs no communication.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from reptk.core import distributed
from reptk.core.errors import NumericalError
from reptk.losses.core import dense, tiled
from reptk.losses.core.key_blocks import Columns, Over, Term, is_tame
from reptk.losses.core.means import add_mean_gradient, class_sums, mean_over_positives

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
def local_rows(first: int, count: int) -> Iterator[None]:
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
        number: (N + K,) one number for each id, rising with it: how many rows have a lesser one.
        positives: (N,) how many others share the row's id, keys included.
    """

    def __init__(self, ids: Tensor, rows: int) -> None:
        ids = ids.long().contiguous()
        in_order = ids.sort().values
        self.number = torch.searchsorted(in_order, ids)
        self.positives = torch.searchsorted(in_order, ids[:rows], right=True) - self.number[:rows] - 1


def normalize(z: Tensor) -> Tensor:
    """Rows of unit length, in float32 or wider, whatever their scale (no overflow, no underflow); zero rows stay zero."""
    return _normalized(z)[0]


def row_statistics(
    z: Tensor, keys: Tensor, groups: Groups, terms: Sequence[tuple[float | Tensor, Over]], mean: bool = True
) -> tuple[Tensor, Tensor]:
    """(T, N) log-sums of T terms, minus infinity where there is nobody to sum over, and (N,) means over positives.

    Args:
        z: (N, D) rows of any length and floating type. On a GPU, bfloat16 stays what it is in products of rows.
        keys: (K, D) further unit rows, K may be 0.
        groups: of rows and keys.
        terms: slope, a number or a scalar tensor that gets its gradient; whom to sum over.
        mean: whether the means are wanted; without, they are empty.
    """
    first, count = _own.get() or (0, len(z))
    if not 0 <= first <= first + count <= len(z):
        raise ValueError(f"local_rows({first}, {count}) are not among the {len(z)} rows of z")
    slopes = [slope for slope, _ in terms]
    learned = any(isinstance(slope, Tensor) and slope.requires_grad for slope in slopes)
    device = next((slope.device for slope in slopes if isinstance(slope, Tensor)), None)
    if device is not None:
        slopes = torch.stack([_scalar(slope, device) for slope in slopes])
    else:
        slopes = torch.tensor(slopes, dtype=torch.float64)
    overs = [get_args(Over).index(over) for _, over in terms]
    given = (z, keys, groups.number, groups.positives, slopes, overs, first, count, mean, learned, _how.get())
    made = _operator(*given) if torch.compiler.is_compiling() else _Function.apply(*given)
    return made[0], made[1]


# The operator: what it computes, what a compiler has to know of it, and its derivative


def _forward(
    z: Tensor, keys: Tensor, group: Tensor, positives: Tensor, slopes: Tensor, overs: Sequence[int], first: int,
    count: int, mean: bool, learned: bool, how: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    rows = z.shape[0]
    with torch.autocast(z.device.type, enabled=False):
        unit, largest, norm = _normalized(z)
        none = unit.new_empty(0)
        sums = class_sums(unit, keys, group) if mean else none
        means = mean_over_positives(unit, sums, group, positives) if mean else none.clone()
        log_sums, expected, kept = unit.new_empty(0, rows), none.clone(), none.clone()
        if overs:
            computes = _chosen(how, unit, count, keys.shape[0])
            own, columns = _sides(*_products(computes, z.dtype, unit, keys), group, first, count)
            log_sums, expected, kept = computes.forward(own, columns, _terms(slopes, overs, unit), learned)
        if count < rows:
            log_sums, expected = (_gather(part, rows) if part.numel() else part for part in (log_sums, expected))
    # A row that is NaN shows in its norm even where it has nobody to be summed over.
    if not z.is_cuda and (norm.isnan().any() or log_sums.isnan().any()):
        raise NumericalError(_broken(unit, keys))
    return log_sums, means, expected, kept, sums, unit, largest, norm


def _fake(z, keys, group, positives, slopes, overs, first, count, mean, learned, how):  # type: ignore[no-untyped-def]
    unit = z.new_empty(z.shape, dtype=torch.promote_types(z.dtype, torch.float32))
    terms, rows, wide = len(overs), z.shape[0], z.shape[0] + keys.shape[0]
    return (
        unit.new_empty(terms, rows),
        unit.new_empty(rows if mean else 0),
        unit.new_empty((terms, rows) if learned and terms else (0,)),
        unit.new_empty((terms, count, wide) if terms and _keeps(how, count * wide) else (0,)),
        unit.new_empty((wide, z.shape[1]) if mean else (0,)),
        unit,
        unit.new_empty(rows, 1),
        unit.new_empty(rows, 1),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    z, keys, group, positives, slopes, overs, first, count, _, _, how = inputs
    log_sums, _, *saved = output
    ctx.mark_non_differentiable(*saved)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(log_sums, *saved, keys, group, positives, slopes)
    ctx.rest = (overs, first, count, how, z.dtype)


def _backward(ctx: Any, by_log_sum: Tensor | None, by_mean: Tensor | None, *_: Any, gradient: Any) -> tuple[Any, ...]:
    log_sums, expected, *others, keys, group, positives, slopes = ctx.saved_tensors
    wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[4] and by_log_sum is not None]
    if (by_log_sum is None and by_mean is None) or not any(wanted):
        return (None,) * 11
    given = (by_log_sum, by_mean, log_sums, expected, *others, keys, group, positives, slopes)
    by_z, by_slopes = (
        made if asked else None for made, asked in zip(gradient(*given, *ctx.rest, *wanted), wanted, strict=True)
    )
    return by_z, None, None, None, by_slopes, None, None, None, None, None, None


def _gradients(
    by_log_sum: Tensor | None, by_mean: Tensor | None, log_sums: Tensor, expected: Tensor, kept: Tensor, sums: Tensor,
    unit: Tensor, largest: Tensor, norm: Tensor, keys: Tensor, group: Tensor, positives: Tensor, slopes: Tensor,
    overs: Sequence[int], first: int, count: int, how: str, dtype: torch.dtype, of_z: bool, of_slopes: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Of z and of the slopes; empty where not wanted."""
    by_slopes = (by_log_sum * expected).sum(1).to(slopes) if of_slopes else slopes.new_empty(0)
    if not of_z:
        return unit.new_empty(0, dtype=dtype), by_slopes
    given = (by_log_sum, by_mean, log_sums, kept, sums, unit, largest, norm, keys, group, positives, slopes)
    return _gradient(*given, overs, first, count, how, dtype), by_slopes


def _gradients_fake(by_log_sum, by_mean, log_sums, expected, kept, sums, unit, *rest):  # type: ignore[no-untyped-def]
    slopes, dtype, of_z, of_slopes = rest[5], *rest[-3:]
    by_z = unit.new_empty(unit.shape if of_z else (0,), dtype=dtype)
    return by_z, slopes.new_empty(slopes.shape if of_slopes else (0,))


def _gradient(
    by_log_sum: Tensor | None, by_mean: Tensor | None, log_sums: Tensor, kept: Tensor, sums: Tensor, unit: Tensor,
    largest: Tensor, norm: Tensor, keys: Tensor, group: Tensor, positives: Tensor, slopes: Tensor,
    overs: Sequence[int], first: int, count: int, how: str, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    own_slice = slice(first, first + count)
    with torch.autocast(unit.device.type, enabled=False):
        made = None
        if by_log_sum is not None and overs:
            # A row whose sum is empty has no gradient, and no finite logarithm to compute one with.
            empty = log_sums == -torch.inf
            g, log_sums = by_log_sum.masked_fill(empty, 0.0), log_sums.masked_fill(empty, 0.0)
            computes = _chosen(how, unit, count, keys.shape[0])
            own, columns = _sides(*_products(computes, dtype, unit, keys), group, first, count, g, log_sums)
            made = computes.backward(own, columns, _terms(slopes, overs, unit), kept)
        if by_mean is not None and by_mean.numel():
            made = torch.zeros_like(unit[own_slice]) if made is None else made
            add_mean_gradient(made, by_mean, unit, sums, group, positives, first)
        if made is None:
            return unit.new_zeros(unit.shape, dtype=dtype)
        along = (unit[own_slice] * made).sum(1, keepdim=True)
        # Divided one after the other: their product may overflow.
        made.addcmul_(unit[own_slice], along, value=-1).div_(norm[own_slice]).div_(largest[own_slice])
    if count == unit.shape[0]:
        return made.to(dtype)
    whole = unit.new_zeros(unit.shape, dtype=dtype)
    whole[own_slice] = made
    return whole


def _refuse(*_: Any) -> None:
    raise RuntimeError(
        "reptk's losses have no second derivative: their backward pass keeps nothing to differentiate. Penalise a gradient "
        "by finite differences, or write that term in plain PyTorch"
    )


_gradient_operator = torch.library.custom_op("reptk::row_statistics_backward", _gradients, mutates_args=())
_gradient_operator.register_fake(_gradients_fake)
_gradient_operator.register_autograd(_refuse)
_operator = torch.library.custom_op("reptk::row_statistics", _forward, mutates_args=())
_operator.register_fake(_fake)
_operator.register_autograd(partial(_backward, gradient=_gradient_operator), setup_context=_keep)


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> Any:
        made = _forward(*given)
        _keep(ctx, given, made)
        return made

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        # With create_graph, somebody may differentiate again; the operator answers that.
        return _backward(ctx, *gradients, gradient=_gradient_operator if torch.is_grad_enabled() else _gradients)


# Whose rows, which sums, computed how


def _terms(slopes: Tensor, overs: Sequence[int], unit: Tensor) -> list[Term]:
    names = get_args(Over)
    if slopes.is_cuda:  # not looked at, which would mean waiting: the sums are made in the way that is right for any
        return [Term(slope, names[over], False) for slope, over in zip(slopes.to(unit.dtype), overs, strict=True)]
    made = zip(slopes.tolist(), overs, strict=True)
    return [Term(slope, names[over], is_tame(slope, unit.dtype)) for slope, over in made]


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
    rows, last = unit.shape[0], first + count
    queue = [Columns(keys, group[rows:], None, None)] if keys.shape[0] else []
    if count == rows:
        own = Columns(unit, group[:rows], g, lse)
        return own, [own, *queue]

    def cut(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[..., first:last]

    def rest(values: Tensor | None) -> Tensor | None:
        return None if values is None else torch.cat([values[..., :first], values[..., last:rows]], -1)

    own = Columns(unit[first:last], cut(group), cut(g), cut(lse))
    others = Columns(torch.cat([unit[:first], unit[last:]]), rest(group), rest(g), rest(lse))
    return own, [own, others, *queue]


def _products(computes: Any, dtype: torch.dtype, unit: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Rows as they are multiplied: by Triton, in bfloat16 where that is what the embeddings came in.

    Not in float16: weights of the gradient are about 1 / N^2, which it cannot hold.
    """
    if computes in (dense, tiled) or dtype != torch.bfloat16:
        return unit, keys
    return unit.to(dtype), keys.to(dtype)


def _chosen(how: str, unit: Tensor, count: int, keys: int) -> Any:
    if _keeps(how, count * (unit.shape[0] + keys)):
        return dense
    if how == "triton" or (how == "auto" and unit.is_cuda and _triton_takes(unit)):
        from reptk.losses.core import triton_kernels

        return triton_kernels
    return tiled


def _keeps(how: str, pairs: int) -> bool:
    return how == "dense" or (how == "auto" and pairs <= DENSE_PAIRS)


def _triton_takes(unit: Tensor) -> bool:
    """Its kernels are written for NVIDIA's tensor cores from Ampere on."""
    fits = unit.dtype == torch.float32 and unit.shape[1] <= 512
    able = torch.version.hip is None and torch.cuda.get_device_capability(unit.device) >= (8, 0)
    return fits and able and find_spec("triton") is not None


def _gather(values: Tensor, rows: int) -> Tensor:
    """(T, n) of this rank -> (T, N)."""
    made = distributed.all_gather(values.T).T.contiguous()
    if made.shape[1] != rows:
        raise ValueError(
            f"own_rows: {distributed.world_size()} ranks of {values.shape[1]} rows are not the {rows} rows of z; a loss that shares its "
            "rows gives Rows the z and ids it was given, all of them in their order"
        )
    return made


def _scalar(slope: float | Tensor, device: torch.device) -> Tensor:
    # A number is filled in on the device: copying it there would wait.
    if isinstance(slope, Tensor):
        return slope.to(device, torch.float64)
    return torch.full((), slope, dtype=torch.float64, device=device)


def _normalized(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Unit rows; and what they were divided by, one after the other, since the product may overflow."""
    wide = z.to(torch.promote_types(z.dtype, torch.float32))
    largest = _or_one(wide.detach().abs().amax(1, keepdim=True))
    wide = wide / largest
    norm = _or_one(torch.linalg.vector_norm(wide, dim=1, keepdim=True))
    return wide / norm, largest, norm


def _or_one(lengths: Tensor) -> Tensor:
    return lengths.masked_fill(lengths == 0, 1.0)


def _broken(unit: Tensor, keys: Tensor) -> str:
    for name, rows in (("z", unit), ("keys", keys)):
        broken = (~rows.isfinite().all(1)).nonzero().flatten().tolist()
        if broken:
            shown = ", ".join(map(str, broken[:5])) + (", ..." if len(broken) > 5 else "")
            return f"{len(broken)} of {len(rows)} rows of {name} hold NaN or infinity: {shown}"
    return "the temperature or a weight of the loss is NaN"
