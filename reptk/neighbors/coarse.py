"""Candidates by products in bfloat16, where the processor has instructions for it: in less than half the time of float32's.

What such products are off is bounded for every query, by Cauchy-Schwarz from what rounding took from the rows, and as many rows
are kept as could be nearest within that bound; `exact` settles them. The bank is taken less its mean, which changes no order,
so that embeddings that all point the same way do not drown in rounding.
"""

import functools
import math
import os
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from reptk.core import rng
from reptk.core.numba_jit import load_kernels
from reptk.core.threads import parallel_for
from reptk.neighbors.candidates import Candidates, vanishing
from reptk.neighbors.rows import Facts, lengths

LEAST_ROWS, LEAST_QUERIES, MOST_NEIGHBOURS, SHARE = 20_000, 128, 1000, 50
"""From so many rows and queries on it is worth it, and up to so many neighbours, one row of the bank in so many at most."""

SCALES = 1e-12, 1e12
"""Lengths of the longest row in between which nothing overflows or vanishes on the way."""

SAMPLE = 4096
"""Rows that tell how similar a row has to be to be kept."""

SPARE, MORE = 1.5, 8
"""About so many times as many rows as are wanted are kept, and as many more as stand for so many of the sample."""

MOST_SPARE, MOST_MORE = 5, 500
"""At most so many times as many rows as are wanted, and so many more, are kept."""

CHUNK = 2048
"""Rows at a time: their scores stay in the cache until they have been sifted."""

WORTH, PAIRS = 0.75, 1 / 128
"""Once a smaller share of a block of queries could be settled so, or at the price of a larger share of the bank (besides the
neighbours) that had to be added up exactly for each, others are not tried."""

ROUNDING = 2.0**-8
"""Of bfloat16, relative."""


def coarse(bank: Tensor, facts: Facts) -> "Coarse | None":
    """How to look at a float32 bank on the CPU, or None where it is not worth it."""
    native = load_kernels("reptk.neighbors.kernels") if multiplies_bfloat16() else None
    is_fit = len(bank) >= LEAST_ROWS and SCALES[0] < facts.longest < SCALES[1]
    if native is None or not is_fit or bank.dtype != torch.float32 or not bank.is_contiguous():
        return None
    return Coarse(bank, native)


def multiplies_bfloat16() -> bool:
    """Whether torch does, with instructions for it."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "ALL")).upper()
    is_allowed = limit in ("ALL", "DEFAULT") or limit.endswith(("BF16", "FP16", "AMX"))
    by_onednn = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
    return is_allowed and by_onednn and has_instructions()


@functools.cache
def has_instructions() -> bool:
    """Whether the processor has instructions for bfloat16, as Linux names its features."""
    try:
        features = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(features)


class Coarse:
    """Looks at a bank. No autocast may be on.

    Args:
        bank: (n, F) float32, contiguous.
        native: `reptk.neighbors.kernels`.
    """

    def __init__(self, bank: Tensor, native: ModuleType) -> None:
        self.bank, self.native = bank, native
        count = min(SAMPLE, len(bank))
        drawn = torch.randperm(len(bank), generator=rng.generator("coarse", len(bank)))[:count].sort().values
        rows = self.bank[drawn]
        self.mean = rows.mean(0)
        self.sample = _Short(rows, self.mean, native).rows
        self.is_worth = True

    def takes(self, queries: int, k: int) -> bool:
        """Whether so many queries and neighbours are for this."""
        is_few = k <= min(MOST_NEIGHBOURS, len(self.bank) // SHARE)
        return self.is_worth and is_few and queries >= LEAST_QUERIES

    def learn(self, found: Candidates, k: int, settled: int) -> None:
        """Be told how many queries of a block could be settled so."""
        pairs = int((found.rows >= 0).sum()) / len(found.rows)
        self.is_worth = settled >= WORTH * len(found.rows) and pairs <= k + PAIRS * len(self.bank)

    def __call__(self, queries: Tensor, k: int) -> Candidates:
        """All rows that can be among the k nearest, of as many as were kept."""
        asked = queries.float()
        short = asked.bfloat16()
        share = len(self.sample) / len(self.bank)
        wanted = SPARE * k * share
        rank = math.ceil(wanted + 3 * math.sqrt(wanted) + MORE)  # of so few, chance may take three deviations
        kept = _Kept(len(asked), rank, self.native)
        kept.sift(torch.mm(short, self.sample.T), 0)
        floors = np.maximum(kept.ranks(rank)[1] - 1, 0).astype(np.int16)
        count = math.ceil(min(len(self.bank), SPARE * rank / share, MOST_SPARE * k + MOST_MORE))
        kept = _Kept(len(asked), count, self.native, floors)
        longest = lost = 0.0
        for first in range(0, len(self.bank), CHUNK):
            part = _Short(self.bank[first : first + CHUNK], self.mean, self.native)
            longest, lost = max(longest, part.longest), max(lost, part.lost)
            kept.sift(torch.mm(short, part.rows.T), first)
        best, last = (_value(bits).double() for bits in kept.ranks(k))
        taken, length = lengths(asked - short.float()), lengths(short.float())
        offset = asked.double() @ self.mean.double()
        # Rounded queries, rounded rows, sums in float32, the rounded score, and the offset and its sum with the score.
        error = taken * longest + length * lost + (asked.shape[1] + 2) * 2.0**-22 * length * longest
        error += ROUNDING * best.abs() + 2.0**-22 * (offset.abs() + best.abs())
        error += vanishing(asked.shape[1]) * (1 + length + longest)
        limits = (last - 2.02 * error).float()
        # Where rows are missing that would have to be settled, none is named.
        is_open = (limits < _value(kept.floors)) | (torch.from_numpy(kept.filled) < k)
        kept.filled[is_open.numpy()] = 0
        similarities, rows = kept.above(limits)
        rest = (limits.double() + offset).masked_fill_(is_open, torch.inf)
        return Candidates((similarities + offset[:, None]).float(), rows, rest, error)


class _Short:
    """(n, F) `rows` less the mean, in bfloat16; the greatest length of one, and the greatest of what rounding took."""

    def __init__(self, rows: Tensor, mean: Tensor, native: ModuleType) -> None:
        made, found = np.empty(rows.shape, np.int16), np.empty((2, len(rows)), np.float32)
        read = rows.numpy(), mean.numpy()
        parallel_for(lambda *ends: native.shorten(*read, made, *found, *ends), len(rows))
        self.rows = torch.from_numpy(made).view(torch.bfloat16)
        # Squares that vanish in float32, of values below 2^-63, are each less than the smallest normal number.
        vanished = rows.shape[1] * 2.0**-126
        self.longest, self.lost = (1.001 * math.sqrt(float(values.max()) + vanished) for values in found)


class _Kept:
    """The rows that score best for each query so far: at least `count`, once as many are above the floor."""

    def __init__(self, queries: int, count: int, native: ModuleType, floors: np.ndarray | None = None) -> None:
        self.count, self.native = count, native
        self.keys, self.filled = np.empty((queries, 2 * count), np.int64), np.zeros(queries, np.int64)
        self.floors = np.full(queries, -(1 << 15), np.int16) if floors is None else floors

    def sift(self, scores: Tensor, first_row: int) -> None:
        """Take what is above the floor of (b, c) scores in bfloat16; where that fills up, raise it."""
        assert scores.dtype == torch.bfloat16
        given = scores.view(torch.int16).numpy(), first_row, self.keys, self.filled, self.floors, self.count
        parallel_for(lambda *ends: self.native.sift(*given, *ends), len(self.keys))

    def ranks(self, k: int) -> np.ndarray:
        """(2, b) bits of the best score and of the k-th; 0 where fewer are held."""
        made = np.zeros((2, len(self.keys)), np.int16)
        parallel_for(lambda *ends: self.native.ranks(self.keys, self.filled, k, *made, *ends), len(self.keys))
        return made

    def above(self, limits: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and rows (b, c) from the limits (b,) on; minus infinity and -1 where a query has fewer."""
        bits = (limits.clamp_min(0).view(torch.int32) >> 16).to(torch.int16).numpy()
        parallel_for(lambda *ends: self.native.cut(self.keys, self.filled, bits, *ends), len(self.keys))
        keys = torch.from_numpy(self.keys[:, : max(1, self.filled.max())].copy())
        absent = torch.arange(keys.shape[1]) >= torch.from_numpy(self.filled)[:, None]
        scores = _value((keys >> 32).to(torch.int16)).masked_fill_(absent, -torch.inf)
        return scores, (keys & 0xFFFFFFFF).masked_fill_(absent, -1)


def _value(bits: Tensor | np.ndarray) -> Tensor:
    """What bits of bfloat16 stand for, as float32."""
    return torch.as_tensor(bits).view(torch.bfloat16).float()
