"""Log-sum-exp by Triton kernels on CUDA: products in the rows' own precision, sums in float32, nothing of size N x N.

Sums of float32 rows over all others or all negatives, where exp needs no shift, visit only tiles on and above the diagonal
and add column sums atomically: half the work, but the last bits depend on the order of arrival. After
`torch.use_deterministic_algorithms(True)` full tiles are taken instead, as they are in half precision, where they are
quicker. The gradient always takes full tiles and is deterministic given the sums. Sums over positives run over rows sorted
by id, so a row visits its own group alone.

With TRITON_INTERPRET=1 in the environment before this module is imported, the kernels run on the CPU (slowly, for tests).
"""

import math
import os
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from reptk.core.errors import EnvironmentProblem
from reptk.losses.core.key_blocks import Columns, Forward, Term

LOG2E = math.log2(math.e)
WIDEST = 512
"""Largest D: a block of rows has to stay in registers."""

PROGRAMS, MOST_SHARES = 1024, 8
"""Where blocks of rows are few, several programs share one's columns: so many programs in all, at most so many a block."""


class _Launch(NamedTuple):
    rows: int
    columns: int
    warps: int
    stages: int


def forward(own: Columns, columns: list[Columns], terms: list[Term], learned: bool) -> Forward:
    """See `columns.Forward`. Keeps nothing."""
    _check(own.z)
    with torch.cuda.device_of(own.z):  # Triton launches on the current device, which need not be the rows'
        made = [_one_term(own, columns, term, learned) for term in terms]
    log_sum = torch.stack([log_sum for log_sum, _ in made])
    mean = torch.stack([mean for _, mean in made]) if learned else log_sum.new_empty(0)
    return Forward(log_sum, mean, log_sum.new_empty(0))


def backward(own: Columns, columns: list[Columns], terms: list[Term], kept: Tensor) -> Tensor:
    """Gradient of the own rows (n, D), float32."""
    gradient = torch.zeros(own.z.shape, dtype=torch.float32, device=own.z.device)
    with torch.cuda.device_of(own.z):
        for number, term in enumerate(terms):
            for side in columns:
                _add_gradient(gradient, own, side, term, number, side is own)
    return gradient


def _one_term(own: Columns, columns: list[Columns], term: Term, learned: bool) -> tuple[Tensor, Tensor]:
    n = own.z.shape[0]
    top = own.z.new_full((n,), -math.inf, dtype=torch.float32)
    total, moment = torch.zeros_like(top), torch.zeros_like(top)
    for side in columns:
        is_self = side is own
        if is_self and not learned and _is_halved(own.z, term):
            _half_sums(own, term, top, total)
        else:
            _whole_sums(own, side, term, is_self, top, total, moment, learned)
    log_sum = (top + total.log2()) / LOG2E
    return log_sum, moment / total.masked_fill(total == 0, 1.0)


def _is_halved(z: Tensor, term: Term) -> bool:
    return (
        z.dtype == torch.float32
        and term.tame
        and term.over != "positives"
        and not torch.are_deterministic_algorithms_enabled()
    )


def _half_sums(own: Columns, term: Term, top: Tensor, total: Tensor) -> None:
    n, d = own.z.shape
    launch = _launch("half", own.z, n)
    z = own.z.contiguous()
    blocks = triton.cdiv(n, launch.rows)
    _half_kernel[(blocks, max(1, min(MOST_SHARES, PROGRAMS // blocks)))](
        z, own.group, _slope(term, z), total, n, d,
        NEGATIVES=term.over == "negatives", BLOCK=launch.rows, WIDTH=_width(d), PRECISION=_precision(z),
        num_warps=launch.warps, num_stages=launch.stages,
    )  # fmt: skip
    top.zero_()


def _whole_sums(
    own: Columns, side: Columns, term: Term, is_self: bool, top: Tensor, total: Tensor, moment: Tensor, learned: bool
) -> None:
    lined = _line_up(own, side, term, is_self)
    n, d = own.z.shape
    launch = _launch("sums", own.z, n)
    _sums_kernel[(triton.cdiv(n, launch.rows),)](
        lined.x, lined.y, lined.x_group, lined.y_group, lined.order, lined.start, lined.stop,
        _slope(term, own.z), top, total, moment, n, lined.y.shape[0], d,
        OVER=_OVER[term.over], SELF=is_self, LEARNED=learned, TAME=term.tame, ROWS=launch.rows, COLUMNS=launch.columns,
        WIDTH=_width(d), PRECISION=_precision(own.z), num_warps=launch.warps, num_stages=launch.stages,
    )  # fmt: skip


def _add_gradient(gradient: Tensor, own: Columns, side: Columns, term: Term, number: int, is_self: bool) -> None:
    lined = _line_up(own, side, term, is_self)
    n, d = own.z.shape
    slope = _slope(term, own.z)
    g, lse = _weights(own, term, number)
    g_columns, lse_columns = _weights(side, term, number) if side.g is not None else (g, lse)  # keys': not read
    row_order, column_order = lined.order, lined.column_order
    launch = _launch("gradient", own.z, n)
    _gradient_kernel[(triton.cdiv(n, launch.rows),)](
        lined.x, lined.y, lined.x_group, lined.y_group, row_order, lined.start, lined.stop, slope,
        g[row_order], lse[row_order],
        g_columns if side.g is None else g_columns[column_order],
        lse_columns if side.g is None else lse_columns[column_order],
        gradient, n, lined.y.shape[0], d,
        OVER=_OVER[term.over], SELF=is_self, ANCHORS=side.g is not None, TAME=term.tame, ROWS=launch.rows,
        COLUMNS=launch.columns, WIDTH=_width(d), PRECISION=_precision(own.z), num_warps=launch.warps, num_stages=launch.stages,
    )  # fmt: skip


def _weights(side: Columns, term: Term, number: int) -> tuple[Tensor, Tensor]:
    g, lse = side.g[number] * term.slope, side.lse[number]
    return (g * torch.exp(-lse), lse) if term.tame else (g, lse)


def _slope(term: Term, z: Tensor) -> Tensor:
    if isinstance(term.slope, Tensor):
        return term.slope.to(z.device, torch.float32)
    return torch.full((), term.slope, dtype=torch.float32, device=z.device)  # filled in there: a copy would wait


class _Lined(NamedTuple):
    """Rows x and columns y in the order the kernels visit them, and for each row which columns: start .. stop - 1."""

    x: Tensor
    y: Tensor
    x_group: Tensor
    y_group: Tensor
    order: Tensor
    column_order: Tensor
    start: Tensor
    stop: Tensor


def _line_up(own: Columns, side: Columns, term: Term, is_self: bool) -> _Lined:
    n, m = own.z.shape[0], side.z.shape[0]
    if term.over != "positives":
        order = torch.arange(n, device=own.z.device)
        column_order = order if is_self else torch.arange(m, device=own.z.device)
        return _Lined(own.z.contiguous(), side.z.contiguous(), own.group, side.group, order, column_order, order, order)
    order = own.group.argsort(stable=True)
    column_order = order if is_self else side.group.argsort(stable=True)
    x_group, y_group = own.group[order], side.group[column_order]
    start, stop = (torch.searchsorted(y_group, x_group, right=right) for right in (False, True))
    return _Lined(own.z[order], side.z[column_order], x_group, y_group, order, column_order, start, stop)


_OVER = {"positives": 0, "negatives": 1, "others": 2}


def _check(z: Tensor) -> None:
    if not (z.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"):
        raise EnvironmentProblem(f"the Triton kernels need CUDA, and the embeddings are on {z.device}: use tiled")
    if z.dtype == torch.float64 or z.shape[1] > WIDEST:
        raise EnvironmentProblem(
            f"the Triton kernels take up to {WIDEST} dimensions in float32 or less, not {z.shape[1]} in {z.dtype}: use tiled"
        )


def _width(d: int) -> int:
    return max(16, triton.next_power_of_2(d))


def _launch(kernel: str, z: Tensor, n: int) -> _Launch:
    """The largest blocks whose sums stay in registers and whose rows and columns fit the device's shared memory."""
    device = torch.cuda.get_device_properties(z.device) if z.is_cuda else None
    limit = device.shared_memory_per_block_optin if device else 232_448
    width = _width(z.shape[1])
    # Fewer rows a block: for the gradient's registers, and where blocks of 128 would be fewer than processors.
    is_few = device is not None and n <= 128 * device.multi_processor_count
    is_flat = z.dtype != torch.float32 and (kernel == "gradient" or (kernel == "sums" and is_few))
    for launch in (_FLAT, *_LAUNCHES) if is_flat else _LAUNCHES:
        launch = launch._replace(columns=launch.rows) if kernel == "half" else launch
        shared = (launch.rows + (launch.stages - 1) * launch.columns) * width * z.element_size()
        shared *= 2 if z.dtype == torch.float32 else 1  # in two parts each, for three TF32 products
        if launch.rows * width <= 2**14 and shared + 4 * launch.rows * launch.columns <= limit:
            return launch
    return _LAUNCHES[-1]


_FLAT = _Launch(64, 128, 4, 3)
_LAUNCHES = (
    _Launch(128, 64, 8, 3),
    _Launch(64, 64, 4, 3),
    _Launch(64, 64, 4, 2),
    _Launch(32, 32, 4, 2),
    _Launch(16, 16, 4, 2),
)


def _precision(z: Tensor) -> str:
    # Three TF32 products are float32's precision at a multiple of its speed.
    return "tf32x3" if z.dtype == torch.float32 else "tf32"


@triton.jit
def _load(z, rows, count, d, WIDTH: tl.constexpr):
    dims = tl.arange(0, WIDTH)
    inside = (rows[:, None] < count) & (dims[None, :] < d)
    return tl.load(z + rows[:, None].to(tl.int64) * d + dims[None, :], mask=inside, other=0.0)


@triton.jit
def _half_kernel(
    z, group, slope, total, n, d,
    NEGATIVES: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * BLOCK
    share, shares = tl.program_id(1), tl.num_programs(1)
    rows = first + tl.arange(0, BLOCK)
    x = _load(z, rows, n, d, WIDTH)
    scale = tl.load(slope) * 1.4426950408889634
    if NEGATIVES:
        row_group = tl.load(group + rows, mask=rows < n, other=-1)
    sums = tl.zeros([BLOCK], tl.float32)
    for start in range(first + share * BLOCK, n, shares * BLOCK):
        columns = start + tl.arange(0, BLOCK)
        y = _load(z, columns, n, d, WIDTH)
        s = tl.dot(x, tl.trans(y), input_precision=PRECISION)
        counts = (rows[:, None] != columns[None, :]) & (rows[:, None] < n) & (columns[None, :] < n)
        if NEGATIVES:
            column_group = tl.load(group + columns, mask=columns < n, other=-1)
            counts = counts & (row_group[:, None] != column_group[None, :])
        p = tl.where(counts, tl.exp2(s * scale), 0.0)
        sums += tl.sum(p, 1)
        if start > first:
            tl.atomic_add(total + columns, tl.sum(p, 0), mask=columns < n)
    tl.atomic_add(total + rows, sums, mask=rows < n)


@triton.jit
def _logits(
    x, y, rows, columns, x_group, y_group, scale, m,
    OVER: tl.constexpr, SELF: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Similarities, and logits in powers of 2 that are minus infinity where a pair does not count."""
    s = tl.dot(x, tl.trans(y), input_precision=PRECISION)
    counts = (columns[None, :] < m) & (rows[:, None] >= 0)
    if SELF:
        counts = counts & (rows[:, None] != columns[None, :])
    if OVER == 0:
        counts = counts & (x_group[:, None] == y_group[None, :])
    if OVER == 1:
        counts = counts & (x_group[:, None] != y_group[None, :])
    return s, tl.where(counts, s * scale, float("-inf"))


@triton.jit
def _range(start, stop, rows, n, m, OVER: tl.constexpr, COLUMNS: tl.constexpr):
    """Which columns a block of rows has to visit."""
    low = 0
    high = m
    if OVER == 0:
        low = tl.min(tl.load(start + rows, mask=rows < n, other=m)).to(tl.int32) // COLUMNS * COLUMNS
        high = tl.max(tl.load(stop + rows, mask=rows < n, other=0)).to(tl.int32)
    return low, high


@triton.jit
def _sums_kernel(
    x_ptr, y_ptr, x_group_ptr, y_group_ptr, order, start, stop, slope, top_ptr, total_ptr, moment_ptr, n, m, d,
    OVER: tl.constexpr, SELF: tl.constexpr, LEARNED: tl.constexpr, TAME: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    x = _load(x_ptr, rows, n, d, WIDTH)
    x_group = tl.load(x_group_ptr + rows, mask=rows < n, other=-1)
    at = tl.load(order + rows, mask=rows < n, other=0)
    scale = tl.load(slope) * 1.4426950408889634
    top = tl.load(top_ptr + at, mask=rows < n, other=float("-inf"))
    total = tl.load(total_ptr + at, mask=rows < n, other=0.0)
    moment = tl.load(moment_ptr + at, mask=rows < n, other=0.0)
    low, high = _range(start, stop, rows, n, m, OVER, COLUMNS)
    for first in range(low, high, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        y = _load(y_ptr, columns, m, d, WIDTH)
        y_group = tl.load(y_group_ptr + columns, mask=columns < m, other=-2)
        s, logits = _logits(x, y, rows, columns, x_group, y_group, scale, m, OVER, SELF, PRECISION)
        if TAME:
            p = tl.exp2(logits)
            fade = 1.0
        else:
            higher = tl.maximum(top, tl.max(logits, 1))
            shift = tl.where(higher == float("-inf"), 0.0, higher)
            p = tl.exp2(logits - shift[:, None])
            fade = tl.exp2(top - shift)
            top = higher
        total = total * fade + tl.sum(p, 1)
        if LEARNED:
            moment = moment * fade + tl.sum(p * s, 1)
    if TAME:
        top = tl.zeros_like(total)
    tl.store(top_ptr + at, top, mask=rows < n)
    tl.store(total_ptr + at, total, mask=rows < n)
    if LEARNED:
        tl.store(moment_ptr + at, moment, mask=rows < n)


@triton.jit
def _gradient_kernel(
    x_ptr, y_ptr, x_group_ptr, y_group_ptr, order, start, stop, slope, g_ptr, lse_ptr, g_columns, lse_columns,
    gradient, n, m, d,
    OVER: tl.constexpr, SELF: tl.constexpr, ANCHORS: tl.constexpr, TAME: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    log2e: tl.constexpr = 1.4426950408889634
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    x = _load(x_ptr, rows, n, d, WIDTH)
    x_group = tl.load(x_group_ptr + rows, mask=rows < n, other=-1)
    at = tl.load(order + rows, mask=rows < n, other=0).to(tl.int64)
    scale = tl.load(slope) * log2e
    g = tl.load(g_ptr + rows, mask=rows < n, other=0.0)
    lse = tl.load(lse_ptr + rows, mask=rows < n, other=0.0) * log2e
    sums = tl.zeros([ROWS, WIDTH], tl.float32)
    low, high = _range(start, stop, rows, n, m, OVER, COLUMNS)
    for first in range(low, high, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        y = _load(y_ptr, columns, m, d, WIDTH)
        y_group = tl.load(y_group_ptr + columns, mask=columns < m, other=-2)
        _, logits = _logits(x, y, rows, columns, x_group, y_group, scale, m, OVER, SELF, PRECISION)
        if ANCHORS:
            other_g = tl.load(g_columns + columns, mask=columns < m, other=0.0)
        if TAME:  # g is already divided by exp(lse): one exponential a pair
            h = tl.exp2(logits) * (g[:, None] + other_g[None, :] if ANCHORS else g[:, None])
        else:
            h = tl.exp2(logits - lse[:, None]) * g[:, None]
            if ANCHORS:
                other_lse = tl.load(lse_columns + columns, mask=columns < m, other=0.0) * log2e
                h += tl.exp2(logits - other_lse[None, :]) * other_g[None, :]
        sums = tl.dot(h.to(y.dtype), y, sums, input_precision=PRECISION)
    dims = tl.arange(0, WIDTH)
    inside = (rows[:, None] < n) & (dims[None, :] < d)
    place = gradient + at[:, None] * d + dims[None, :]
    tl.store(place, tl.load(place, mask=inside, other=0.0) + sums, mask=inside)
