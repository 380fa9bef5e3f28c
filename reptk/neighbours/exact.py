"""Exact nearest neighbours by inner product: FAISS where it is installed, else torch. Queries go through in blocks."""

import functools
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

BLOCK = 1024


def search(bank: Tensor, queries: Tensor, k: int, exclude: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """The k rows of `bank` most similar to each query, best first, block after block of queries.

    Args:
        bank: (n, F).
        queries: (q, F).
        k: neighbours.
        exclude: (q,) the row of the bank that is the query itself and must not be found; -1 for none.

    Yields:
        similarities (b, k) and rows (b, k), in the order of the queries.

    Raises:
        ValueError: widths that differ, values that are not finite, or a k that the bank cannot satisfy.
    """
    check_rows("bank", bank)
    check_rows("queries", queries)
    if bank.shape[1] != queries.shape[1]:
        raise ValueError(f"bank rows have {bank.shape[1]} values, query rows {queries.shape[1]}")
    available = len(bank) - (exclude is not None and bool((exclude >= 0).any()))
    if not 1 <= k <= available:
        raise ValueError(
            f"k must be 1 to {available} (rows in the bank{' besides the query' if available < len(bank) else ''}), got {k}"
        )
    find = _faiss_index(bank) if engine() == "faiss" else _torch_index(bank)
    bank, queries = bank.float(), queries.float()
    for first in range(0, len(queries), BLOCK):
        block = queries[first : first + BLOCK]
        if exclude is None:
            yield find(block, k)
        else:
            yield _without(exclude[first : first + BLOCK], *find(block, min(k + 1, len(bank))), k)


@functools.cache
def engine() -> str:
    """ "faiss" or "torch"; warns once if FAISS is missing."""
    if sys.platform == "darwin":
        return "torch"  # torch and faiss bring an OpenMP runtime each, and two in one process crash there
    try:
        import faiss  # noqa: F401
    except (ImportError, RuntimeError):
        warnings.warn(
            "FAISS is not installed; neighbours are searched exactly with torch. pip install 'reptk[cpu]' or 'reptk[gpu]'",
            stacklevel=2,
        )
        return "torch"
    return "faiss"


def check_rows(name: str, rows: Tensor) -> None:
    """Raise ValueError unless `rows` is (n, F) floating point with finite values; names the first offenders."""
    if rows.ndim != 2 or not rows.is_floating_point():
        raise ValueError(f"{name} must be (n, F) floating point, got {rows.dtype} {tuple(rows.shape)}")
    bad = (~rows.isfinite().all(1)).nonzero().flatten()
    if len(bad):
        raise ValueError(f"{len(bad)} of {len(rows)} rows of {name} hold NaN or infinity, first {bad[:5].tolist()}")


def _faiss_index(bank: Tensor) -> Any:
    import faiss

    index = faiss.IndexFlatIP(bank.shape[1])
    index.add(bank.float().cpu().contiguous().numpy())

    def find(queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        similarities, rows = index.search(queries.cpu().contiguous().numpy(), k)
        return torch.from_numpy(similarities), torch.from_numpy(rows)

    return find


def _torch_index(bank: Tensor) -> Any:
    transposed = bank.float().T

    def find(queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        similarities, rows = (queries @ transposed).topk(k, dim=1)
        return similarities.cpu(), rows.cpu()

    return find


def _without(own: Tensor, similarities: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The first k neighbours that are not the query itself."""
    found = rows != own[:, None]
    # Where the query itself is not among the k + 1 (equal vectors crowd it out), the last neighbour goes instead.
    found[:, -1] &= ~found.all(1) | (rows.shape[1] == k)
    keep = found.nonzero()[:, 1].view(len(rows), -1)[:, :k]
    return similarities.gather(1, keep), rows.gather(1, keep)
