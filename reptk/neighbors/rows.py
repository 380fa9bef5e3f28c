"""What is true of rows that are searched: floating point, finite, not all zero. Banks may be larger than memory."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reptk.core.numba_jit import load_kernels
from reptk.core.threads import parallel_for

CHUNK_BYTES = 32 << 20
"""Rows of a bank that is on disk, on another device or in half precision are converted so many bytes at a time."""


@dataclass(frozen=True)
class Facts:
    """Of finite rows.

    Args:
        longest: the greatest length (L2) of a row.
        zero: how many rows hold nothing but zeros.
        first_zero: numbers of the first of them.
    """

    longest: float
    zero: int
    first_zero: list[int]


def check_vectors(name: str, rows: Tensor) -> Facts:
    """Look at every row once, chunk by chunk.

    Raises:
        ValueError: `rows` is not (n, F) floating point, or holds NaN or infinity: how many rows, and the first of them.
    """
    if rows.ndim != 2 or not rows.shape[1] or not rows.is_floating_point():
        raise ValueError(f"{name} must be (n, F) floating point, got {rows.dtype} {tuple(rows.shape)}")
    longest, bad, zero = 0.0, _Numbers(), _Numbers()
    for first, chunk in chunks(rows.detach()):
        long = lengths(chunk)
        bad.add((~long.isfinite()).nonzero(), first)
        zero.add((long == 0).nonzero(), first)
        longest = max(longest, float(long.max()))
    if bad.count:
        raise ValueError(f"{bad.count} of {len(rows)} rows of {name} hold NaN or infinity, first {bad.first}")
    return Facts(longest, zero.count, zero.first)


def check_products(longest: float, longest_asked: float) -> None:
    """Raise ValueError if inner products of rows and queries of these lengths could exceed float32."""
    if longest * longest_asked > 1e38:
        raise ValueError(
            f"rows of length {longest:.3g} and {longest_asked:.3g} have inner products beyond float32; normalise them"
        )


def warn_of_zeros(name: str, count: int, facts: Facts) -> None:
    """Say once that rows hold nothing but zeros, since their neighbours are chosen by row number alone."""
    if facts.zero:
        warnings.warn(
            f"{facts.zero} of {count} rows of {name} are all zeros, first {facts.first_zero}; everything is as near to them",
            stacklevel=3,
        )


def chunks(rows: Tensor, chunk_bytes: int | None = None) -> Iterator[tuple[int, Tensor]]:
    """(number of the first row, rows as float32), a few megabytes at a time; views where nothing has to be converted."""
    size = max(1, (chunk_bytes or CHUNK_BYTES) // (4 * max(1, rows.shape[1])))
    for first in range(0, len(rows), size):
        yield first, rows[first : first + size].float()


def lengths(rows: Tensor) -> Tensor:
    """(n,) L2 of float32 rows, in float64, where their squares neither overflow nor vanish: 0 for nothing but zeros."""
    native = load_kernels("reptk.neighbors.kernels") if rows.device.type == "cpu" and rows.is_contiguous() else None
    if native is None:
        return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    made, read = np.empty(len(rows)), rows.detach().numpy()
    parallel_for(lambda *ends: native.lengths(read, made, *ends), len(rows))
    return torch.from_numpy(made)


class _Numbers:
    """How many, and the first five."""

    def __init__(self) -> None:
        self.count, self.first = 0, []

    def add(self, found: Tensor, offset: int) -> None:
        self.count += len(found)
        self.first += [offset + number for number in found.flatten()[: 5 - len(self.first)].tolist()]
