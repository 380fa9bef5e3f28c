"""The rows that may be the nearest: found in float32 as fast as the machine can, more than are wanted, not yet exact."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from reptk.neighbors.rows import chunks, lengths


class Candidates(NamedTuple):
    """Rows that may be the nearest of b queries.

    similarities: (b, c) float32, roughly; minus infinity where there is no row.
    rows: (b, c) their numbers, in any order; -1 for none.
    rest: (b,) no other row is found to be more similar than this.
    error: (b,) how far off a similarity may be, those of other rows too.
    """

    similarities: Tensor
    rows: Tensor
    rest: Tensor
    error: Tensor


Find = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""(queries (b, F), count) -> similarities (b, count) best first, rows (b, count); equal ones in any order."""


def first_of(find: Find, queries: Tensor, count: int, error: float, of: int) -> Candidates:
    """So many candidates out of `of` rows, by similarities that are off by `error` as a share of the query's length."""
    similarities, rows = find(queries, count)
    rest = similarities[:, -1].double() if count < of else torch.full_like(similarities[:, -1], -torch.inf)
    return Candidates(similarities, rows, rest, lengths(queries.float()) * error + vanishing(queries.shape[1]))


def vanishing(width: int) -> float:
    """How far off an inner product may be because values below the smallest normal number lose digits, or are taken as 0."""
    return (width + 2) * 2.0**-126


SCORES = {"cpu": 1 << 23, "cuda": 1 << 28}
"""Similarities that torch holds at a time."""

BLAS_QUERIES = 20
"""FAISS takes BLAS for this many queries or more; its own limit since 1.13 is many times later and several times slower."""


def faiss_find(faiss: ModuleType, bank: Tensor) -> Find:
    """Search by FAISS on the processor, in the rows where they lie: an index would be a copy of the bank."""

    def find(queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        asked = queries.float().contiguous().numpy()
        best = None
        with _early_blas(faiss, queries.shape[1]):
            for first, rows in _parts(bank):
                found, numbers = faiss.knn(
                    asked, rows.numpy(), min(count, len(rows)), metric=faiss.METRIC_INNER_PRODUCT
                )
                best = _better(best, torch.from_numpy(found), torch.from_numpy(numbers).add_(first), count)
        return best

    return find


def torch_find(bank: Tensor) -> Find:
    """Search by torch on the queries' device, to which the bank is brought chunk by chunk."""

    def find(queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        asked = queries.float()
        size = max(count, SCORES.get(asked.device.type, SCORES["cpu"]) // len(asked))
        best = None
        for first, rows in chunks(bank, 4 * bank.shape[1] * size):
            found, numbers = (asked @ rows.to(asked.device).T).topk(min(count, len(rows)), dim=1)
            best = _better(best, found, numbers.add_(first), count)
        return best

    return find


def float32_error(width: int, device: torch.device) -> float:
    """How far a float32 inner product may be off, whatever the order of its sum, as a share of the rows' lengths."""
    # Lower precision is taken where torch.set_float32_matmul_precision allows it: TF32 keeps 10 bits, bfloat16 keeps 7.
    factors = {"highest": 0.0, "high": 2.0**-9, "medium": 2.0**-6}[torch.get_float32_matmul_precision()]
    if device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32:
        factors = max(factors, 2.0**-9)
    return (width + 2) * 2.0**-24 * 1.01 + factors


def _parts(bank: Tensor) -> Iterator[tuple[int, Tensor]]:
    if bank.dtype == torch.float32 and bank.is_contiguous():
        yield 0, bank
    else:
        for first, rows in chunks(bank):
            yield first, rows.contiguous()


def _better(best: tuple[Tensor, Tensor] | None, found: Tensor, numbers: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The first `count` of what was found before and what is found now."""
    if best is None:
        return found, numbers
    found, numbers = torch.cat([best[0], found], 1), torch.cat([best[1], numbers], 1)
    found, order = found.topk(min(count, found.shape[1]), dim=1)
    return found, numbers.gather(1, order)


@contextmanager
def _early_blas(faiss: ModuleType, width: int) -> Iterator[None]:
    before = faiss.cvar.distance_compute_blas_threshold
    # Counted in values rather than in queries where it is large.
    faiss.cvar.distance_compute_blas_threshold = min(before, BLAS_QUERIES * width) if before > 1000 else before
    try:
        yield
    finally:
        faiss.cvar.distance_compute_blas_threshold = before
