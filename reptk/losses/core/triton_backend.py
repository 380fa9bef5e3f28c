"""Log-sum-exp by Triton kernels on CUDA: products in the rows' type, sums in float32, nothing of size N x N.

Sums of float32 rows over all others or all negatives that need no max shift visit only tiles on and above the diagonal and
add column sums atomically: half the work, but the last bits depend on the order of arrival. After
`torch.use_deterministic_algorithms(True)` all tiles are visited instead, as they are in half precision, where that is
faster. The gradient always visits all tiles and is deterministic given the sums. Sums over positives visit rows sorted by
id, so that a row meets its own group alone.
"""

import math
import os
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from reptk.core.errors import EnvironmentProblem
from reptk.losses.core.key_blocks import ExpSum, KeyBlock, LogSums
from reptk.losses.core.triton_kernels import gradient_kernel, half_sums_kernel, sums_kernel

LOG2E = math.log2(math.e)

MAX_DIMENSIONS = 512
"""A block of rows has to stay in registers. `implementations._suits_triton` repeats this number."""

TARGET_PROGRAMS = 1024
MAX_SHARES = 8
"""Where blocks of rows are few, several programs share the keys of one block: at most this many."""


def forward(anchors: KeyBlock, key_blocks: list[KeyBlock], exp_sums: list[ExpSum], with_expectation: bool) -> LogSums:
    """See `Implementation.forward`. Caches nothing."""
    _check_rows(anchors.z)
    log_sums, expected = [], []
    with torch.cuda.device_of(anchors.z):  # Triton launches on the current device, which need not be that of the rows
        for exp_sum in exp_sums:
            sums = _sum_over_blocks(anchors, key_blocks, exp_sum, with_expectation)
            # The kernels compute in powers of 2: back to natural logarithms.
            log_sums.append((sums.largest_logit + sums.total.log2()) / LOG2E)
            if with_expectation:
                expected.append(sums.weighted_similarity / sums.total.masked_fill(sums.total == 0, 1.0))
    log_sums = torch.stack(log_sums)
    expected = torch.stack(expected) if with_expectation else log_sums.new_empty(0)
    return LogSums(log_sums, expected, cache=log_sums.new_empty(0))


def backward(anchors: KeyBlock, key_blocks: list[KeyBlock], exp_sums: list[ExpSum], cache: Tensor) -> Tensor:
    """See `Implementation.backward`. The gradient is in float32."""
    gradient = torch.zeros(anchors.z.shape, dtype=torch.float32, device=anchors.z.device)
    with torch.cuda.device_of(anchors.z):
        for number, exp_sum in enumerate(exp_sums):
            for block in key_blocks:
                _add_gradient(gradient, anchors, block, exp_sum, number)
    return gradient


class _Sums(NamedTuple):
    """(n,) float32 each, over the keys visited so far; logits are in powers of 2. The kernels change them in place."""

    largest_logit: Tensor
    total: Tensor
    weighted_similarity: Tensor


def _sum_over_blocks(anchors: KeyBlock, key_blocks: list[KeyBlock], exp_sum: ExpSum, with_expectation: bool) -> _Sums:
    num_anchors = anchors.z.shape[0]
    largest_logit = anchors.z.new_full((num_anchors,), -math.inf, dtype=torch.float32)
    sums = _Sums(largest_logit, torch.zeros_like(largest_logit), torch.zeros_like(largest_logit))
    for block in key_blocks:
        if block is anchors and not with_expectation and _may_add_atomically(anchors.z, exp_sum):
            _launch_half_sums(anchors, exp_sum, sums)
        else:
            _launch_sums(anchors, block, exp_sum, sums, with_expectation)
    return sums


def _may_add_atomically(z: Tensor, exp_sum: ExpSum) -> bool:
    """Whether sums over the upper half of the tiles are possible, faster, and not forbidden."""
    return (
        z.dtype == torch.float32
        and not exp_sum.needs_max_shift
        and exp_sum.candidates != "positives"
        and not torch.are_deterministic_algorithms_enabled()
    )


# Launching the kernels


def _launch_half_sums(anchors: KeyBlock, exp_sum: ExpSum, sums: _Sums) -> None:
    n, d = anchors.z.shape
    size = launch_size("half_sums", anchors.z, n)
    z = anchors.z.contiguous()
    num_blocks = triton.cdiv(n, size.rows)
    num_shares = max(1, min(MAX_SHARES, TARGET_PROGRAMS // num_blocks))
    half_sums_kernel[(num_blocks, num_shares)](
        z,
        anchors.group,
        _scale_tensor(exp_sum, z),
        sums.total,
        n,
        d,
        CANDIDATES=exp_sum.candidates,
        ROWS=size.rows,
        WIDTH=padded_width(d),
        PRECISION=precision(z),
        num_warps=size.warps,
        num_stages=size.stages,
    )
    sums.largest_logit.zero_()  # nothing was subtracted


def _launch_sums(anchors: KeyBlock, block: KeyBlock, exp_sum: ExpSum, sums: _Sums, with_expectation: bool) -> None:
    ordered = _in_visiting_order(anchors, block, exp_sum)
    n, d = anchors.z.shape
    size = launch_size("sums", anchors.z, n)
    sums_kernel[(triton.cdiv(n, size.rows),)](
        ordered.x,
        ordered.y,
        ordered.x_group,
        ordered.y_group,
        ordered.x_order,
        ordered.start,
        ordered.stop,
        _scale_tensor(exp_sum, anchors.z),
        sums.largest_logit,
        sums.total,
        sums.weighted_similarity,
        n,
        ordered.y.shape[0],
        d,
        CANDIDATES=exp_sum.candidates,
        SELF=block is anchors,
        WITH_EXPECTATION=with_expectation,
        NEEDS_MAX_SHIFT=exp_sum.needs_max_shift,
        ROWS=size.rows,
        KEYS=size.keys,
        WIDTH=padded_width(d),
        PRECISION=precision(anchors.z),
        num_warps=size.warps,
        num_stages=size.stages,
    )


def _add_gradient(gradient: Tensor, anchors: KeyBlock, block: KeyBlock, exp_sum: ExpSum, number: int) -> None:
    ordered = _in_visiting_order(anchors, block, exp_sum)
    n, d = anchors.z.shape
    g, lse = _gradient_and_log_sum(anchors, exp_sum, number)
    g, lse = g[ordered.x_order], lse[ordered.x_order]
    keys_are_anchors = block.grad_log_sum is not None
    if keys_are_anchors:
        key_g, key_lse = _gradient_and_log_sum(block, exp_sum, number)
        key_g, key_lse = key_g[ordered.y_order], key_lse[ordered.y_order]
    else:
        key_g, key_lse = g, lse  # the kernel needs pointers, and does not read them
    size = launch_size("gradient", anchors.z, n)
    gradient_kernel[(triton.cdiv(n, size.rows),)](
        ordered.x,
        ordered.y,
        ordered.x_group,
        ordered.y_group,
        ordered.x_order,
        ordered.start,
        ordered.stop,
        _scale_tensor(exp_sum, anchors.z),
        g,
        lse,
        key_g,
        key_lse,
        gradient,
        n,
        ordered.y.shape[0],
        d,
        CANDIDATES=exp_sum.candidates,
        SELF=block is anchors,
        KEYS_ARE_ANCHORS=keys_are_anchors,
        NEEDS_MAX_SHIFT=exp_sum.needs_max_shift,
        ROWS=size.rows,
        KEYS=size.keys,
        WIDTH=padded_width(d),
        PRECISION=precision(anchors.z),
        num_warps=size.warps,
        num_stages=size.stages,
    )


def _gradient_and_log_sum(block: KeyBlock, exp_sum: ExpSum, number: int) -> tuple[Tensor, Tensor]:
    """Return g and lse as `gradient_kernel` expects them."""
    block = block.of_sum(number)
    g, lse = block.grad_log_sum * exp_sum.logit_scale, block.log_sum
    if exp_sum.needs_max_shift:
        return g, lse
    return g * torch.exp(-lse), lse


def _scale_tensor(exp_sum: ExpSum, z: Tensor) -> Tensor:
    if isinstance(exp_sum.logit_scale, Tensor):
        return exp_sum.logit_scale.to(z.device, torch.float32)
    # Filled in on the device: a copy would wait.
    return torch.full((), exp_sum.logit_scale, dtype=torch.float32, device=z.device)


class _VisitingOrder(NamedTuple):
    """Rows x and keys y in the order in which the kernels visit them.

    Attributes:
        x, y: (n, D) and (m, D).
        x_group, y_group: (n,) and (m,).
        x_order, y_order: (n,) and (m,) where each row and key is in its block.
        start, stop: (n,) row i meets keys start[i] .. stop[i] - 1. Read for positives alone.
    """

    x: Tensor
    y: Tensor
    x_group: Tensor
    y_group: Tensor
    x_order: Tensor
    y_order: Tensor
    start: Tensor
    stop: Tensor


def _in_visiting_order(anchors: KeyBlock, block: KeyBlock, exp_sum: ExpSum) -> _VisitingOrder:
    is_self = block is anchors
    if exp_sum.candidates != "positives":
        x_order = torch.arange(anchors.z.shape[0], device=anchors.z.device)
        y_order = x_order if is_self else torch.arange(block.z.shape[0], device=anchors.z.device)
        x, y = anchors.z.contiguous(), block.z.contiguous()
        return _VisitingOrder(x, y, anchors.group, block.group, x_order, y_order, start=x_order, stop=x_order)
    x_order = anchors.group.argsort(stable=True)
    y_order = x_order if is_self else block.group.argsort(stable=True)
    x_group, y_group = anchors.group[x_order], block.group[y_order]
    start = torch.searchsorted(y_group, x_group)
    stop = torch.searchsorted(y_group, x_group, right=True)
    return _VisitingOrder(anchors.z[x_order], block.z[y_order], x_group, y_group, x_order, y_order, start, stop)


def _check_rows(z: Tensor) -> None:
    is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if not z.is_cuda and not is_interpreted:
        raise EnvironmentProblem(f"the Triton kernels need CUDA, and the embeddings are on {z.device}: use tiled")
    if z.dtype == torch.float64 or z.shape[1] > MAX_DIMENSIONS:
        raise EnvironmentProblem(
            f"the Triton kernels take up to {MAX_DIMENSIONS} dimensions in float32 or less, not {z.shape[1]} in "
            f"{z.dtype}: use tiled"
        )


# How large a block of rows and keys is


class LaunchSize(NamedTuple):
    """Rows and keys of a tile, and Triton's warps and pipeline stages."""

    rows: int
    keys: int
    warps: int
    stages: int


_WIDE_TILES = LaunchSize(64, 128, 4, 3)
_LAUNCH_SIZES = (
    LaunchSize(128, 64, 8, 3),
    LaunchSize(64, 64, 4, 3),
    LaunchSize(64, 64, 4, 2),
    LaunchSize(32, 32, 4, 2),
    LaunchSize(16, 16, 4, 2),
)


def launch_size(kernel: str, z: Tensor, n: int) -> LaunchSize:
    """Return the largest tiles whose sums stay in registers and whose rows and keys fit the device's shared memory.

    Args:
        kernel: "half_sums", "sums" or "gradient".
        z: rows, for their type, width and device.
        n: number of anchors.
    """
    if z.is_cuda:
        device = torch.cuda.get_device_properties(z.device)
        shared_memory = device.shared_memory_per_block_optin
        # Blocks of 128 rows would be fewer than processors.
        has_few_blocks = n <= 128 * device.multi_processor_count
    else:
        shared_memory = 232_448  # that of an H100; the interpreter has no limit
        has_few_blocks = False
    sizes = _LAUNCH_SIZES
    # In half precision, fewer rows and more keys: for the gradient's registers, or where blocks are few.
    if z.dtype != torch.float32 and (kernel == "gradient" or (kernel == "sums" and has_few_blocks)):
        sizes = (_WIDE_TILES, *_LAUNCH_SIZES)
    width = padded_width(z.shape[1])
    for size in sizes:
        if kernel == "half_sums":
            size = size._replace(keys=size.rows)
        bytes_of_rows = (size.rows + (size.stages - 1) * size.keys) * width * z.element_size()
        if z.dtype == torch.float32:
            bytes_of_rows *= 2  # each in two parts, for three TF32 products
        # 2**14 sums fit into the registers of one program; the logits need 4 bytes each in shared memory.
        if size.rows * width <= 2**14 and bytes_of_rows + 4 * size.rows * size.keys <= shared_memory:
            return size
    return _LAUNCH_SIZES[-1]


def padded_width(d: int) -> int:
    # Triton's blocks have powers of 2 as sides, and `tl.dot` needs at least 16.
    return max(16, triton.next_power_of_2(d))


def precision(z: Tensor) -> str:
    """Return Triton's name for how rows are multiplied: three TF32 products have float32's precision, and are faster."""
    return "tf32x3" if z.dtype == torch.float32 else "tf32"
