"""Checks of vectors before they are searched: floating point, finite, not all zero. A bank may be larger than memory."""

import warnings
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from reptk.core.counts import format_count
from reptk.core.errors import NonFiniteValues
from reptk.core.numba_jit import load_kernels
from reptk.core.threads import parallel_for

CHUNK_BYTES = 32 << 20
"""Size, in float32, of the chunks in which a bank is read, converted or copied to a device."""


class VectorStats(NamedTuple):
    """Statistics of finite rows: the largest L2 norm, how many rows are all zeros, and the first five of them."""

    max_norm: float
    zero_count: int
    first_zeros: list[int]


def check_vectors(name: str, rows: Tensor) -> VectorStats:
    """Read all rows (n, F) once.

    Raises:
        ValueError: `rows` is not two-dimensional floating point.
        NonFiniteValues: a ValueError: rows hold NaN or infinity; how many, and the first five.
    """
    if rows.ndim != 2 or rows.shape[1] == 0 or not rows.is_floating_point():
        raise ValueError(f"{name} must be (n, F) floating point, got {rows.dtype} {tuple(rows.shape)}")
    norms = row_norms(rows.detach())
    not_finite = (~norms.isfinite()).nonzero()[:, 0]
    if len(not_finite):
        first = not_finite[:5].tolist()
        raise NonFiniteValues(
            f"{len(not_finite)} of {format_count(len(rows), 'row')} of {name} hold NaN or infinity, first {first}"
        )
    zeros = (norms == 0).nonzero()[:, 0]
    max_norm = 0.0
    if len(norms):
        max_norm = float(norms.max())
    return VectorStats(max_norm, len(zeros), zeros[:5].tolist())


def check_products(bank_norm: float, query_norm: float) -> None:
    """Raise ValueError if inner products of rows with these norms may overflow float32."""
    if bank_norm * query_norm > 1e38:
        raise ValueError(
            f"rows of length {bank_norm:.3g} and {query_norm:.3g} have inner products beyond float32; normalize them"
        )


def warn_of_zeros(name: str, count: int, stats: VectorStats) -> None:
    """Warn if rows are all zeros: every row is equally similar to them, so row numbers alone rank their neighbors."""
    if stats.zero_count:
        warnings.warn(
            f"{stats.zero_count} of {format_count(count, 'row')} of {name} are all zeros, first {stats.first_zeros}; "
            "all rows are equally similar to them",
            stacklevel=3,
        )


def chunks(rows: Tensor, chunk_rows: int | None = None) -> Iterator[tuple[int, Tensor]]:
    """Yield (number of the first row, chunk in float32); a chunk of a float32 tensor is a view."""
    if chunk_rows is None:
        chunk_rows = max(1, CHUNK_BYTES // (4 * rows.shape[1]))
    for first in range(0, len(rows), chunk_rows):
        yield first, rows[first : first + chunk_rows].float()


def row_norms(rows: Tensor) -> Tensor:
    """L2 norms (n,) in float64, where squares of float32 neither overflow nor underflow: 0 means a row of zeros."""
    norms = torch.empty(len(rows), dtype=torch.float64, device=rows.device)
    for first, chunk in chunks(rows):
        _write_norms(chunk.contiguous(), norms[first : first + len(chunk)])
    return norms


def _write_norms(rows: Tensor, norms: Tensor) -> None:
    kernels = load_kernels("reptk.neighbors.neighbor_kernels")
    if kernels is None or rows.device.type != "cpu":
        torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64, out=norms)
    else:
        parallel_for(lambda *bounds: kernels.row_norms(rows.numpy(), norms.numpy(), *bounds), len(rows))
