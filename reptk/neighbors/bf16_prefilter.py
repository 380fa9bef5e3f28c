"""Candidates by products in bfloat16, on CPUs that multiply it: in less than half the time of products in float32.

A query's candidates are all rows whose score is within twice the error of its k-th best score. The error is bounded by
Cauchy-Schwarz, from what rounding to bfloat16 changed. The mean of the bank is subtracted first, which changes no ranking, so
that the error is small also where all embeddings point in about the same direction.
"""

import math
import os
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from reptk.core import rng
from reptk.core.numba_jit import load_kernels
from reptk.core.threads import parallel_for
from reptk.neighbors.vectors import row_norms

MIN_ROWS = 20_000
MIN_QUERIES = 128
MAX_NEIGHBORS = 1000
MIN_ROWS_PER_NEIGHBOR = 50
"""Rows of the bank, queries and neighbors from or up to which the filter is faster than products in float32."""

NORM_RANGE = 1e-12, 1e12
"""Norms of the longest row with which no product in bfloat16 overflows or underflows."""

SAMPLE_SHARE = 32
"""One row in SAMPLE_SHARE is in the sample from which the floor of the scores is estimated."""

CHUNK_ROWS = 2048
"""Rows at a time, so that their scores are still in the cache when they are compared."""

BF16_ROUNDING = 2.0**-8
"""Largest relative error of rounding to bfloat16."""


class Candidates(NamedTuple):
    """Rows that may be the nearest neighbors of q queries.

    Args:
        similarities: (q, c) approximate; anything where the row is -1.
        rows: (q, c) row numbers in any order; -1 for none.
        bound: (q,) approximate similarity that no other row exceeds.
        error: (q,) bound of the error of approximate similarities, those of other rows too.
    """

    similarities: Tensor
    rows: Tensor
    bound: Tensor
    error: Tensor


def underflow_error(width: int) -> float:
    """Bound of the error of an inner product because values below the smallest normal number lose digits or become 0."""
    return (width + 2) * 2.0**-126


def cpu_multiplies_bf16() -> bool:
    """Whether the CPU has instructions for products in bfloat16, and torch uses them."""
    # torch.ops.mkldnn._is_mkldnn_bf16_supported also accepts CPUs that emulate bfloat16.
    has_instructions = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    # This variable may forbid oneDNN the instructions.
    is_restricted = "ONEDNN_MAX_CPU_ISA" in os.environ
    is_enabled = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
    return has_instructions and is_enabled and not is_restricted


class Bf16Bank:
    """A bank that is rounded to bfloat16 chunk by chunk while it is searched.

    Args:
        bank: (n, F) float32, contiguous, on the CPU.
    """

    def __init__(self, bank: Tensor) -> None:
        self.bank = bank.detach()
        count = -(-len(bank) // SAMPLE_SHARE)
        numbers = torch.randperm(len(bank), generator=rng.generator("bf16 prefilter", len(bank)))[:count]
        rows = self.bank[numbers.sort().values]
        self.mean = rows.mean(0)
        self.sample = self.round(rows).rows

    @staticmethod
    def applies(bank: Tensor, max_norm: float) -> bool:
        """Whether a bank can be searched in bfloat16, and with an advantage."""
        is_plain = bank.device.type == "cpu" and bank.dtype == torch.float32 and bank.is_contiguous()
        is_in_range = len(bank) >= MIN_ROWS and NORM_RANGE[0] < max_norm < NORM_RANGE[1]
        if not is_plain or not is_in_range or not cpu_multiplies_bf16():
            return False
        return load_kernels("reptk.neighbors.neighbor_kernels") is not None

    def is_faster(self, query_count: int, k: int) -> bool:
        """Whether `query_count` queries for k neighbors take less time than in float32."""
        max_neighbors = min(MAX_NEIGHBORS, len(self.bank) // MIN_ROWS_PER_NEIGHBOR)
        return query_count >= MIN_QUERIES and k <= max_neighbors

    def candidates(self, queries: Tensor, k: int) -> Candidates:
        """Return all rows that may be among the k nearest of each query. Autocast must be off.

        A query that bfloat16 cannot decide has no candidates, and an infinite bound.
        """
        queries = queries.float()
        rounded = queries.bfloat16()
        # About 1.5 k rows of the bank exceed this score of the sample; chance may take three standard deviations.
        expected = 1.5 * k / SAMPLE_SHARE
        rank = min(len(self.sample), math.ceil(expected + 3 * math.sqrt(expected) + 5))
        # Bits sort like the numbers they stand for from 0 up only.
        floors = _kth_greatest((rounded @ self.sample.T).float(), rank).clamp_min(0)
        matches = _Matches(floors.bfloat16(), capacity=min(len(self.bank), 2 * rank * SAMPLE_SHARE))
        max_norm = max_error = 0.0
        for first in range(0, len(self.bank), CHUNK_ROWS):
            chunk = self.round(self.bank[first : first + CHUNK_ROWS])
            max_norm, max_error = max(max_norm, chunk.max_norm), max(max_error, chunk.max_error)
            matches.add(rounded @ chunk.rows.T, first)
        scores, rows = matches.result(k)
        offsets = queries.double() @ self.mean.double()
        error = self._error(queries, rounded, max_norm, max_error, scores.amax(1).clamp_min(0).double(), offsets)
        limits = _kth_greatest(scores, k).double() - 2.02 * error
        # Below the floor rows were not collected, so one that is missing might be a neighbor.
        is_undecided = (limits < floors) | matches.overflowed
        rows.masked_fill_((scores < limits[:, None]) | is_undecided[:, None], -1)
        bound = (limits + offsets).masked_fill_(is_undecided, torch.inf)
        return Candidates((scores + offsets[:, None]).float(), rows, bound, error)

    def _error(
        self, queries: Tensor, rounded: Tensor, max_norm: float, max_error: float, best: Tensor, offsets: Tensor
    ) -> Tensor:
        """Bound (q,) of the error of scores plus offsets."""
        width = queries.shape[1]
        query_error, query_norm = row_norms(queries - rounded.float()), row_norms(rounded)
        error = query_error * max_norm + query_norm * max_error
        error += (width + 2) * 2.0**-22 * query_norm * max_norm  # the sum in float32, in any order
        error += BF16_ROUNDING * best.abs()  # the score in bfloat16
        error += 2.0**-22 * (offsets.abs() + best.abs())  # the offset, and its sum with the score
        return error + underflow_error(width) * (1 + query_norm + max_norm)

    def round(self, rows: Tensor) -> "RoundedRows":
        """Subtract the mean from rows (n, F), and round them to bfloat16."""
        kernels = load_kernels("reptk.neighbors.neighbor_kernels")
        bits = torch.empty(rows.shape, dtype=torch.int16)
        norms2, errors2 = torch.empty(len(rows)), torch.empty(len(rows))
        arrays = [tensor.numpy() for tensor in (rows, self.mean, bits, norms2, errors2)]
        parallel_for(lambda *bounds: kernels.round_to_bf16(*arrays, *bounds), len(rows))
        # Squares of values below 2^-63 underflow in float32; each is less than the smallest normal number.
        underflow = rows.shape[1] * 2.0**-126
        # The factor covers the rounding of the sums in float32.
        max_norm = 1.001 * math.sqrt(float(norms2.max()) + underflow)
        max_error = 1.001 * math.sqrt(float(errors2.max()) + underflow)
        return RoundedRows(bits.view(torch.bfloat16), max_norm, max_error)


def _kth_greatest(scores: Tensor, k: int) -> Tensor:
    """The k-th greatest value (q,) of each line (q, c)."""
    column = scores.shape[1] - k
    return torch.from_numpy(np.partition(scores.numpy(), column, axis=1)[:, column])


class RoundedRows(NamedTuple):
    """Rows (n, F) in bfloat16, the largest norm before rounding, and the largest norm of what rounding changed."""

    rows: Tensor
    max_norm: float
    max_error: float


class _Matches:
    """The rows whose score exceeds their query's floor (q,), up to a capacity."""

    def __init__(self, floors: Tensor, capacity: int) -> None:
        self._floors = floors.view(torch.int16).numpy()
        self._keys = np.empty((len(floors), capacity), np.int64)
        self._counts = np.zeros(len(floors), np.int64)

    def add(self, scores: Tensor, first_row: int) -> None:
        """Collect from scores (q, c) in bfloat16, of which column 0 is `first_row`."""
        kernels = load_kernels("reptk.neighbors.neighbor_kernels")
        arrays = scores.view(torch.int16).numpy(), first_row, self._floors, self._keys, self._counts
        parallel_for(lambda *bounds: kernels.collect_above(*arrays, *bounds), len(self._keys))

    @property
    def overflowed(self) -> Tensor:
        """(q,) whether more rows exceeded the floor than could be kept."""
        return torch.from_numpy(self._counts > self._keys.shape[1])

    def result(self, k: int) -> tuple[Tensor, Tensor]:
        """Scores (q, c) in float32 and rows (q, c) of at least k columns; -inf and -1 where a query has fewer."""
        keys = torch.from_numpy(self._keys[:, : max(k, self._counts.max())])
        is_absent = torch.arange(keys.shape[1]) >= torch.from_numpy(self._counts)[:, None]
        scores = (keys >> 32).to(torch.int16).view(torch.bfloat16).float()
        return scores.masked_fill_(is_absent, -torch.inf), (keys & 0xFFFFFFFF).masked_fill_(is_absent, -1)
