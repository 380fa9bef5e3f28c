"""Exact nearest neighbors by inner product.

1. Candidates, somewhat more than k, come from products in low precision whose error is bounded: in bfloat16
   (`bf16_prefilter`) or in float32 (`engine`).
2. Their similarities are computed in float64 and ranked (`ranking`).
3. A query is searched again, in float64 and among all rows, if a row that is no candidate may be among its k nearest.

So every engine, block size, number of ranks, CPU and GPU gives the same neighbors, bit for bit.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reptk.core.arrays import as_tensor
from reptk.neighbors.bf16_prefilter import Bf16Bank, Candidates, underflow_error
from reptk.neighbors.engine import Engine, float32_error, resolve_engine, search_device, top_by_float32
from reptk.neighbors.ranking import NO_NEIGHBOR, candidate_similarities, greatest, pack, pair_similarities, unpack
from reptk.neighbors.vectors import check_products, check_vectors, chunks, row_norms, warn_of_zeros

BLOCK = 1024
"""Queries at a time, at most."""

BLOCK_NEIGHBORS = 1 << 21
"""Neighbors of all queries of a block, at most, so that deep rankings need little more memory than others."""

PASS_CANDIDATES = {"cpu": 1 << 22, "cuda": 1 << 25}
"""Candidates at a time where every pass over the bank converts or copies it, so that many queries share one."""

MARGIN = 16
"""Candidates beyond k. Where more rows than these are as similar as the k-th, the query is searched again."""

DEEP_SHARE = 16
"""Where k is at least this fraction (1/16) of the bank, ranking all rows in float64 is faster than re-ranking candidates."""

MIN_CERTAIN = 0.75
"""If bfloat16 decides fewer queries of a block, the rest of the search is left to float32."""

FLOAT64_QUERIES = 256
FLOAT64_SCORES = {"cpu": 1 << 19, "cuda": 1 << 24}
FLOAT64_KEYS = 1 << 23
"""Queries, their float64 products, and their keys (`ranking`), that a search of all rows holds at a time."""


def search(
    bank: Tensor,
    queries: Tensor,
    k: int,
    exclude: Tensor | None = None,
    *,
    engine: Engine = "auto",
    progress: Callable[[int], None] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the k rows of `bank` most similar to each query, best first, equal similarities in row order.

    A float32 bank is read in place; one in another precision is converted chunk by chunk. Both may be memory-mapped.

    Args:
        bank: (n, F), float16, bfloat16 or float32 (float64 is rounded to float32).
        queries: (q, F).
        k: neighbors.
        exclude: (q,) the row of the bank that is the query itself and is left out; -1 for none.
        engine: "faiss" on the CPU, "torch" on the GPU if there is one, or "auto": torch with a GPU, else products in bfloat16
            where the CPU has instructions for them, else FAISS.
        progress: called after every block with how many further queries are done.

    Yields:
        similarities (b, k) float32 and rows (b, k) int64 on the CPU, block after block of queries.

    Raises:
        ValueError: widths that differ, values that are not finite or whose products overflow, a k that the bank cannot
            satisfy.
        EnvironmentProblem: "faiss" is requested and not installed.
    """
    bank, queries = as_tensor("bank", bank), as_tensor("queries", queries)
    if exclude is not None:
        exclude = as_tensor("exclude", exclude)
    bank_norm = _check(bank, queries, k, exclude)
    searchable = SearchableBank.prepare(bank, bank_norm, engine)
    size = block_size(k)
    queries_per_pass = size
    if not searchable.is_read_in_place:
        queries_per_pass = max(size, PASS_CANDIDATES[searchable.device.type] // (k + MARGIN))
    if exclude is None:
        exclude = torch.full((len(queries),), -1)
    for first in range(0, len(queries), queries_per_pass):
        part = slice(first, first + queries_per_pass)
        keys = nearest_keys(searchable, queries[part], exclude[part], k).cpu()
        for block in keys.split(size):
            yield unpack(block)
            if progress is not None:
                progress(len(block))


def block_size(k: int, ranks: int = 1) -> int:
    """Queries of every rank at a time."""
    return max(1, min(BLOCK, BLOCK_NEIGHBORS // (k * ranks)))


@dataclass
class SearchableBank:
    """A checked bank, and how it is searched.

    Args:
        rows: (n, F).
        engine: "faiss" or "torch".
        device: the device of the queries.
        relative_error: bound of the error of a candidate's similarity, over the norm of the query.
        prefilter: the bank in bfloat16 where that is faster.
    """

    rows: Tensor
    engine: str
    device: torch.device
    relative_error: float
    prefilter: Bf16Bank | None = None

    @classmethod
    def prepare(cls, bank: Tensor, max_norm: float, engine: Engine = "auto") -> "SearchableBank":
        """Choose how to search a bank that `check_vectors` has accepted, whose longest row has this norm."""
        resolved = resolve_engine(engine)
        device = search_device(resolved)
        rows = _on_device(bank.detach(), device)
        prefilter = None
        if engine == "auto" and device.type == "cpu" and Bf16Bank.applies(rows, max_norm):
            prefilter = Bf16Bank(rows)
        return cls(rows, resolved, device, float32_error(bank.shape[1], device) * max_norm, prefilter)

    @property
    def is_read_in_place(self) -> bool:
        """Whether a pass over the bank is no more than reading it."""
        return self.rows.dtype == torch.float32 and self.rows.device.type == self.device.type


def nearest_keys(bank: SearchableBank, queries: Tensor, exclude: Tensor, k: int) -> Tensor:
    """Keys (q, k) of the nearest rows (`ranking`), greatest first; rows `exclude` (q,) are left out, -1 for none."""
    queries = queries.detach().to(bank.device)
    exclude = exclude.to(bank.device)
    count = min(k + MARGIN, len(bank.rows))
    # Autocast would take the products to a precision that the bounds of their errors do not cover.
    with torch.autocast(bank.device.type, enabled=False):
        if k * DEEP_SHARE >= len(bank.rows):
            return _nearest_by_float64(bank.rows, queries, exclude, k)
        keys = torch.full((len(queries), k), NO_NEIGHBOR, device=bank.device)
        is_certain = torch.zeros(len(queries), dtype=torch.bool, device=bank.device)
        if bank.prefilter is not None:
            _search_by_bf16(bank, queries, exclude, keys, is_certain)
        uncertain = (~is_certain).nonzero()[:, 0]
        if len(uncertain):
            candidates = _float32_candidates(bank, queries[uncertain], count)
            keys[uncertain], is_certain[uncertain] = _ranked(
                bank, queries[uncertain], exclude[uncertain], k, candidates
            )
            uncertain = (~is_certain).nonzero()[:, 0]
        if len(uncertain):
            keys[uncertain] = _nearest_by_float64(bank.rows, queries[uncertain], exclude[uncertain], k)
    return keys


def _search_by_bf16(bank: SearchableBank, queries: Tensor, exclude: Tensor, keys: Tensor, is_certain: Tensor) -> None:
    """Write `keys` (q, k) and `is_certain` (q,) of as many queries as bfloat16 decides."""
    k = keys.shape[1]
    for first in range(0, len(queries), BLOCK):
        part = slice(first, first + BLOCK)
        if bank.prefilter is None or not bank.prefilter.is_faster(len(queries[part]), k):
            return
        candidates = bank.prefilter.candidates(queries[part], k + 1)  # one more: the query itself may be among them
        keys[part], is_certain[part] = _ranked(bank, queries[part], exclude[part], k, candidates)
        if is_certain[part].double().mean() < MIN_CERTAIN:
            bank.prefilter = None  # for later blocks and later calls, too


def _float32_candidates(bank: SearchableBank, queries: Tensor, count: int) -> Candidates:
    similarities, rows = top_by_float32(bank.rows, queries, count, bank.engine)
    bound = similarities[:, -1].double()
    if count == len(bank.rows):
        bound = torch.full_like(bound, -torch.inf)
    error = row_norms(queries) * bank.relative_error + underflow_error(queries.shape[1])
    return Candidates(similarities, rows, bound, error)


def _ranked(
    bank: SearchableBank, queries: Tensor, exclude: Tensor, k: int, candidates: Candidates
) -> tuple[Tensor, Tensor]:
    """Keys (q, k) of the best candidates, and whether (q,) they are certainly the nearest of all rows."""
    similarities = candidate_similarities(bank.rows, queries, candidates.rows)
    is_absent = candidates.rows < 0
    # A library whose products are less precise than float32 would break the bounds; this notices it.
    is_off = (similarities - candidates.similarities).abs() > candidates.error[:, None]
    is_off = (is_off & ~is_absent).any(1)
    keys = pack(similarities, candidates.rows)
    keys = greatest(keys.masked_fill_(is_absent | (candidates.rows == exclude[:, None]), NO_NEIGHBOR), k)
    kth_similarity = unpack(keys[:, -1])[0].double()
    has_no_others = candidates.bound == -torch.inf
    return keys, ~is_off & (has_no_others | (kth_similarity > candidates.bound + candidates.error))


def _nearest_by_float64(bank: Tensor, queries: Tensor, exclude: Tensor, k: int) -> Tensor:
    """Keys (q, k) of the nearest among all rows of a bank (n, F), greatest first."""
    block_queries = max(1, min(FLOAT64_QUERIES, FLOAT64_KEYS // (2 * k)))
    # At least k rows are ranked at a time, so that the best so far are ranked again only a few times.
    chunk_rows = max(k, FLOAT64_KEYS // min(block_queries, len(queries)))
    parts = []
    for block, block_exclude in zip(queries.split(block_queries), exclude.split(block_queries), strict=True):
        best = _float64_keys(bank[:chunk_rows], block, block_exclude, 0)
        best = greatest(best, k)
        for first in range(chunk_rows, len(bank), chunk_rows):
            keys = _float64_keys(bank[first : first + chunk_rows], block, block_exclude, first)
            best = greatest(torch.cat([best, keys], 1), k)
        parts.append(best)
    return torch.cat(parts)


def _float64_keys(bank: Tensor, queries: Tensor, exclude: Tensor, first_row: int) -> Tensor:
    """Keys (q, n) of all rows (n, F) of a part of the bank that begins with row `first_row`."""
    keys = torch.empty(len(queries), len(bank), dtype=torch.int64, device=queries.device)
    queries64 = queries.float().double()
    # BLAS and `ranking` sum in different orders. Each is off by at most F roundings, and the bounds by one.
    error = 2.02 * (queries.shape[1] + 2) * 2.0**-53 * row_norms(queries)
    chunk_rows = max(1, FLOAT64_SCORES[queries.device.type] // len(queries))
    for first, rows in chunks(bank, chunk_rows):
        rows = rows.to(queries.device)
        scores = queries64 @ rows.double().T
        norms = row_norms(rows)
        similarities = torch.addr(scores, error, norms).float()
        lowest = torch.addr(scores, error, norms, alpha=-1).float()
        # Where the two sums may round to different float32 values, the one of `ranking` is computed.
        lines, columns = _differing(similarities, lowest)
        if len(lines):
            similarities[lines, columns] = pair_similarities(rows, queries, columns, lines)
        numbers = torch.arange(first_row + first, first_row + first + len(rows), device=queries.device)
        keys[:, first : first + len(rows)] = pack(similarities + 0.0, numbers)  # -0 becomes 0
    columns = exclude - first_row
    is_inside = (exclude >= 0) & (columns >= 0) & (columns < len(bank))
    keys[is_inside, columns[is_inside]] = NO_NEIGHBOR
    return keys


def _differing(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Lines and columns in which two matrices differ."""
    if one.device.type != "cpu":
        return (one != other).nonzero(as_tuple=True)
    # NumPy takes a tenth of the time.
    lines, columns = np.nonzero(one.numpy() != other.numpy())
    return torch.from_numpy(lines), torch.from_numpy(columns)


def _check(bank: Tensor, queries: Tensor, k: int, exclude: Tensor | None) -> float:
    """Return the largest norm of a row of the bank; raise ValueError if the arguments do not agree."""
    bank_stats, query_stats = check_vectors("bank", bank), check_vectors("queries", queries)
    if bank.shape[1] != queries.shape[1]:
        raise ValueError(f"bank rows have {bank.shape[1]} values, query rows {queries.shape[1]}")
    has_excluded = exclude is not None and bool((exclude >= 0).any())
    available = len(bank) - has_excluded
    if not 1 <= k <= available:
        besides = ""
        if has_excluded:
            besides = " besides the query"
        raise ValueError(f"k must be 1 to {available} (rows in the bank{besides}), got {k}")
    if exclude is not None and (exclude.shape != (len(queries),) or bool((exclude >= len(bank)).any())):
        raise ValueError(f"exclude must hold {len(queries)} row numbers below {len(bank)} (or -1)")
    check_products(bank_stats.max_norm, query_stats.max_norm)
    warn_of_zeros("bank", len(bank), bank_stats)
    warn_of_zeros("queries", len(queries), query_stats)
    return bank_stats.max_norm


def _on_device(bank: Tensor, device: torch.device) -> Tensor:
    """Return the bank on the CPU, or on the GPU if it needs less than half of the free memory there."""
    if device.type == "cpu":
        return bank.cpu()
    if bank.device.type == "cuda":
        return bank
    free_bytes, _ = torch.cuda.mem_get_info(device)
    if 2 * bank.nbytes >= free_bytes:
        return bank  # copied chunk by chunk in every pass
    return bank.to(device)
