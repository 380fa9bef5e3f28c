"""Triton kernels of log-sum-exp and its gradient; `triton_backend.py` launches them.

With TRITON_INTERPRET=1 in the environment before this module is imported, the kernels run on the CPU (slowly, for tests).

n rows x are compared with m keys y, both of d dimensions. Logits are in powers of 2, since exp2 is what the hardware has.
Constants of every kernel: CANDIDATES ("positives", "negatives" or "others"), SELF (x and y are the same rows), WIDTH (d
rounded up to a power of 2), PRECISION (of float32 products).
"""

import triton
import triton.language as tl


@triton.jit
def _load_rows(z_ptr, rows, count, d, WIDTH: tl.constexpr):
    dims = tl.arange(0, WIDTH)
    is_inside = (rows[:, None] < count) & (dims[None, :] < d)
    return tl.load(z_ptr + rows[:, None].to(tl.int64) * d + dims[None, :], mask=is_inside, other=0.0)


@triton.jit
def _similarities_and_logits(
    x, y, rows, keys, x_group, y_group, scale, m,
    CANDIDATES: tl.constexpr, SELF: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return similarities, and logits in powers of 2 that are minus infinity where a key is no candidate."""
    similarity = tl.dot(x, tl.trans(y), input_precision=PRECISION)
    is_candidate = (keys[None, :] < m) & (rows[:, None] >= 0)
    if SELF:
        is_candidate = is_candidate & (rows[:, None] != keys[None, :])
    if CANDIDATES == "positives":
        is_candidate = is_candidate & (x_group[:, None] == y_group[None, :])
    if CANDIDATES == "negatives":
        is_candidate = is_candidate & (x_group[:, None] != y_group[None, :])
    return similarity, tl.where(is_candidate, similarity * scale, float("-inf"))


@triton.jit
def _key_range(start_ptr, stop_ptr, rows, n, m, CANDIDATES: tl.constexpr, KEYS: tl.constexpr):
    """Return which keys a block of rows has to visit: all, or for positives those of the rows' groups."""
    low = 0
    high = m
    if CANDIDATES == "positives":
        low = tl.min(tl.load(start_ptr + rows, mask=rows < n, other=m)).to(tl.int32) // KEYS * KEYS
        high = tl.max(tl.load(stop_ptr + rows, mask=rows < n, other=0)).to(tl.int32)
    return low, high


@triton.jit
def half_sums_kernel(
    z_ptr, group_ptr, scale_ptr, total_ptr, n, d,
    CANDIDATES: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add the sums of exponentials of rows with each other to total (n,), from tiles on and above the diagonal.

    Row sums and column sums of a tile are added atomically. Several programs may share the keys of one block of rows.
    """
    first = tl.program_id(0) * ROWS
    share, num_shares = tl.program_id(1), tl.num_programs(1)
    rows = first + tl.arange(0, ROWS)
    x = _load_rows(z_ptr, rows, n, d, WIDTH)
    scale = tl.load(scale_ptr) * 1.4426950408889634  # log2(e)
    if CANDIDATES == "negatives":
        row_group = tl.load(group_ptr + rows, mask=rows < n, other=-1)
    sums = tl.zeros([ROWS], tl.float32)
    for start in range(first + share * ROWS, n, num_shares * ROWS):
        keys = start + tl.arange(0, ROWS)
        y = _load_rows(z_ptr, keys, n, d, WIDTH)
        similarity = tl.dot(x, tl.trans(y), input_precision=PRECISION)
        is_candidate = (rows[:, None] != keys[None, :]) & (rows[:, None] < n) & (keys[None, :] < n)
        if CANDIDATES == "negatives":
            key_group = tl.load(group_ptr + keys, mask=keys < n, other=-1)
            is_candidate = is_candidate & (row_group[:, None] != key_group[None, :])
        exponentials = tl.where(is_candidate, tl.exp2(similarity * scale), 0.0)
        sums += tl.sum(exponentials, 1)
        if start > first:
            tl.atomic_add(total_ptr + keys, tl.sum(exponentials, 0), mask=keys < n)
    tl.atomic_add(total_ptr + rows, sums, mask=rows < n)


@triton.jit
def sums_kernel(
    x_ptr, y_ptr, x_group_ptr, y_group_ptr, order_ptr, start_ptr, stop_ptr, scale_ptr,
    largest_ptr, total_ptr, weighted_ptr, n, m, d,
    CANDIDATES: tl.constexpr, SELF: tl.constexpr, WITH_EXPECTATION: tl.constexpr, NEEDS_MAX_SHIFT: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Continue the sums of one block of rows over all keys.

    largest (n,) is the largest logit so far, total (n,) the sum of exponentials of logits minus that, and weighted (n,) the
    same sum with every exponential multiplied by its similarity. Row i of x belongs to place order[i] of these.
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    x = _load_rows(x_ptr, rows, n, d, WIDTH)
    x_group = tl.load(x_group_ptr + rows, mask=rows < n, other=-1)
    place = tl.load(order_ptr + rows, mask=rows < n, other=0)
    scale = tl.load(scale_ptr) * 1.4426950408889634  # log2(e)
    largest = tl.load(largest_ptr + place, mask=rows < n, other=float("-inf"))
    total = tl.load(total_ptr + place, mask=rows < n, other=0.0)
    weighted = tl.load(weighted_ptr + place, mask=rows < n, other=0.0)
    low, high = _key_range(start_ptr, stop_ptr, rows, n, m, CANDIDATES, KEYS)
    for first in range(low, high, KEYS):
        keys = first + tl.arange(0, KEYS)
        y = _load_rows(y_ptr, keys, m, d, WIDTH)
        y_group = tl.load(y_group_ptr + keys, mask=keys < m, other=-2)
        similarity, logits = _similarities_and_logits(
            x, y, rows, keys, x_group, y_group, scale, m, CANDIDATES, SELF, PRECISION
        )
        if NEEDS_MAX_SHIFT:
            new_largest = tl.maximum(largest, tl.max(logits, 1))
            shift = tl.where(new_largest == float("-inf"), 0.0, new_largest)
            exponentials = tl.exp2(logits - shift[:, None])
            rescale = tl.exp2(largest - shift)
            largest = new_largest
        else:
            exponentials = tl.exp2(logits)
            rescale = 1.0
        total = total * rescale + tl.sum(exponentials, 1)
        if WITH_EXPECTATION:
            weighted = weighted * rescale + tl.sum(exponentials * similarity, 1)
    if not NEEDS_MAX_SHIFT:
        largest = tl.zeros_like(total)
    tl.store(largest_ptr + place, largest, mask=rows < n)
    tl.store(total_ptr + place, total, mask=rows < n)
    if WITH_EXPECTATION:
        tl.store(weighted_ptr + place, weighted, mask=rows < n)


@triton.jit
def gradient_kernel(
    x_ptr, y_ptr, x_group_ptr, y_group_ptr, order_ptr, start_ptr, stop_ptr, scale_ptr,
    g_ptr, lse_ptr, key_g_ptr, key_lse_ptr, gradient_ptr, n, m, d,
    CANDIDATES: tl.constexpr, SELF: tl.constexpr, KEYS_ARE_ANCHORS: tl.constexpr, NEEDS_MAX_SHIFT: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add H y to the gradient (n, d) of one block of rows; H is defined in `operator.py`.

    g and lse, of rows and of keys, are the gradient of the log-sum-exp and its value. Without a max shift, g is already
    divided by exp(lse), and one exponential a pair is enough.
    """
    log2e: tl.constexpr = 1.4426950408889634
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    x = _load_rows(x_ptr, rows, n, d, WIDTH)
    x_group = tl.load(x_group_ptr + rows, mask=rows < n, other=-1)
    place = tl.load(order_ptr + rows, mask=rows < n, other=0).to(tl.int64)
    scale = tl.load(scale_ptr) * log2e
    g = tl.load(g_ptr + rows, mask=rows < n, other=0.0)
    lse = tl.load(lse_ptr + rows, mask=rows < n, other=0.0) * log2e
    sums = tl.zeros([ROWS, WIDTH], tl.float32)
    low, high = _key_range(start_ptr, stop_ptr, rows, n, m, CANDIDATES, KEYS)
    for first in range(low, high, KEYS):
        keys = first + tl.arange(0, KEYS)
        y = _load_rows(y_ptr, keys, m, d, WIDTH)
        y_group = tl.load(y_group_ptr + keys, mask=keys < m, other=-2)
        _, logits = _similarities_and_logits(x, y, rows, keys, x_group, y_group, scale, m, CANDIDATES, SELF, PRECISION)
        if KEYS_ARE_ANCHORS:
            key_g = tl.load(key_g_ptr + keys, mask=keys < m, other=0.0)
        if NEEDS_MAX_SHIFT:
            h = tl.exp2(logits - lse[:, None]) * g[:, None]
            if KEYS_ARE_ANCHORS:
                key_lse = tl.load(key_lse_ptr + keys, mask=keys < m, other=0.0) * log2e
                h += tl.exp2(logits - key_lse[None, :]) * key_g[None, :]
        else:
            h = tl.exp2(logits) * (g[:, None] + key_g[None, :] if KEYS_ARE_ANCHORS else g[:, None])
        sums = tl.dot(h.to(y.dtype), y, sums, input_precision=PRECISION)
    dims = tl.arange(0, WIDTH)
    is_inside = (rows[:, None] < n) & (dims[None, :] < d)
    gradient_place = gradient_ptr + place[:, None] * d + dims[None, :]
    tl.store(gradient_place, tl.load(gradient_place, mask=is_inside, other=0.0) + sums, mask=is_inside)
