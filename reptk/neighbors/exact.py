"""Exact nearest neighbours by inner product: found roughly by what is fastest here, then settled in float64.

Similarities are float64 sums rounded to float32; equal ones stand in row order, at the last place too. So every engine_name,
block size, cut of the bank, number of ranks, processor and GPU gives the same neighbours, bit for bit. Rankings of a sixteenth
of the bank (or of a rank's part of it) or more are the exception: `deep` sums in BLAS's order, which may round about one
similarity in ten million otherwise.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from reptk.neighbors import order
from reptk.neighbors.candidates import Candidates, Find, faiss_find, first_of, float32_error, torch_find
from reptk.neighbors.coarse import Coarse, coarse
from reptk.neighbors.crowded import scan
from reptk.neighbors.deep import deepest, is_deep
from reptk.neighbors.engine import device, engine_name, faiss
from reptk.neighbors.pairs import similarities_of
from reptk.neighbors.rows import Facts, check_products, check_vectors, warn_of_zeros

BLOCK = 1024
"""Queries at a time, about."""

MARGIN = 16
"""Candidates beyond k. Too few of them (many rows as near as the k-th) are noticed, and cost a second look."""

HELD = {"cpu": 1 << 22, "cuda": 1 << 25}
"""Candidates at a time where every block of queries costs a pass over a bank that has to be converted or copied."""


def search(
    bank: Tensor, queries: Tensor, k: int, exclude: Tensor | None = None, *, exact: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """The k rows of `bank` most similar to each query, best first, equal ones in row order; block after block of queries.

    A float32 bank is searched where it lies; one in half precision is converted chunk by chunk. Both may be memory-mapped.

    Args:
        bank: (n, F), float16, bfloat16 or float32 (float64 is rounded to float32).
        queries: (q, F).
        k: neighbours.
        exclude: (q,) the row of the bank that is the query itself and must not be found; -1 for none.
        exact: (n, F) the rows that `bank` holds in lower precision: the neighbours are those in `exact`, of which only a
            few rows a query are read.

    Yields:
        similarities (b, k) float32 and rows (b, k) int64 on the CPU, in the order of the queries.

    Raises:
        ValueError: widths that differ, values that are not finite or whose products overflow, a k that the bank cannot
            satisfy, an `exact` that does not belong to the bank.
    """
    prepared = _prepare(bank, queries, k, exclude, exact)
    size = _block(prepared, k)
    for first in range(0, len(queries), size):
        own = None if exclude is None else exclude[first : first + size]
        made = nearest_keys(prepared, queries[first : first + size], own, k).cpu()
        for part in made.split(BLOCK):
            yield order.similarities(part), order.rows(part)


@dataclass(frozen=True)
class Prepared:
    """A bank that has been looked at.

    Args:
        find: candidates in it.
        rows: (n, F) that decide.
        error: how far a candidate's similarity may be off, as a share of the query's length.
        device: where queries are to be.
        is_read_again: whether every block of queries costs a pass over the bank that is more than reading it.
        is_double: whether the rows that decide are others than those that are searched.
        coarse: a quicker look that suffices for most queries, if there is one.
    """

    find: Find
    rows: Tensor
    error: float
    device: torch.device
    is_read_again: bool
    is_double: bool
    coarse: Coarse | None


def prepare(bank: Tensor, facts: Facts, exact: Tensor | None = None) -> Prepared:
    """Choose how to search a bank that `check_rows` has passed."""
    by_faiss = engine_name() == "faiss"
    home = torch.device("cpu") if by_faiss else device()
    bank = _brought(bank.detach(), home)
    find = faiss_find(faiss(), bank.cpu()) if by_faiss else torch_find(bank)
    error = float32_error(bank.shape[1], home) * facts.longest
    if exact is not None:
        # Half a unit in the last place, or in that of the smallest normal number.
        kind = torch.finfo(bank.dtype)
        error += 0.51 * kind.eps * facts.longest + kind.eps * kind.tiny * bank.shape[1] ** 0.5
    is_read_again = bank.dtype != torch.float32 or bank.device.type != home.type
    quick = coarse(bank, facts) if home.type == "cpu" and exact is None else None
    rows = bank if exact is None else exact.detach()
    return Prepared(find, rows, error, home, is_read_again, exact is not None, quick)


def nearest_keys(bank: Prepared, queries: Tensor, own: Tensor | None, k: int) -> Tensor:
    """(b, k) the nearest rows of the bank as keys (`order`), greatest first; `own` (b,) are left out.

    Raises:
        ValueError: the rows that decide are further from those that were searched than rounding can explain.
    """
    with torch.autocast(bank.device.type, enabled=False):  # the bounds of errors are of products as they are asked for
        return _nearest_keys(bank, queries.detach().to(bank.device), own, k)


def _nearest_keys(bank: Prepared, queries: Tensor, own: Tensor | None, k: int) -> Tensor:
    own = torch.full((len(queries),), -1) if own is None else own
    own = own.to(bank.device)
    if bank.device.type == "cpu" and is_deep(bank.rows, k):
        return deepest(bank.rows, queries, own, k)
    made = torch.full((len(queries), k), order.NONE, device=bank.device)
    left = torch.arange(len(queries), device=bank.device)

    def settle(some: Tensor, candidates: Candidates) -> Tensor:
        """Those of some queries that are still open."""
        made[some], is_settled = _settled(bank, queries[some], own[some], k, candidates)
        return some[~is_settled]

    if bank.coarse is not None:
        parts = list(left.split(BLOCK))
        for number, some in enumerate(parts):
            if bank.coarse.takes(len(some), k):
                candidates = bank.coarse(queries[some], k + 1)  # one more: the query itself may be among them
                parts[number] = settle(some, candidates)
                bank.coarse.learn(candidates, k, len(some) - len(parts[number]))
        left = torch.cat(parts)
    count = len(bank.rows)
    for wanted, size in ((k + MARGIN, len(queries)), (4 * (k + MARGIN), max(1, len(queries) // 4))):
        if len(left):
            look = partial(first_of, bank.find, count=min(wanted, count), error=bank.error, of=count)
            left = torch.cat([settle(some, look(queries[some])) for some in left.split(size)])
    if len(left):
        made[left] = scan(bank.rows, queries[left], own[left], made[left])
    return made


def _settled(bank: Prepared, queries: Tensor, own: Tensor, k: int, found: Candidates) -> tuple[Tensor, Tensor]:
    """The k best of the candidates, and whether (b,) no other row can be among them."""
    similarities = similarities_of(bank.rows, queries, found.rows)
    is_wrong = ((similarities - found.similarities).abs() > found.error[:, None]).any(1)
    if bank.is_double and is_wrong.any():
        raise ValueError("exact holds other rows than bank: similarities differ by more than rounding can explain")
    made = order.keys(similarities, found.rows)
    made = order.nearest(made.masked_fill_((found.rows == own[:, None]) | (found.rows < 0), order.NONE), k)
    least = order.similarities(made[:, -1:])[:, 0].double()
    return made, ~is_wrong & ((found.rest == -torch.inf) | (least > found.rest + found.error))


def _prepare(bank: Tensor, queries: Tensor, k: int, exclude: Tensor | None, exact: Tensor | None) -> Prepared:
    facts, asked = check_vectors("bank", bank), check_vectors("queries", queries)
    if bank.shape[1] != queries.shape[1]:
        raise ValueError(f"bank rows have {bank.shape[1]} values, query rows {queries.shape[1]}")
    available = len(bank) - (exclude is not None and bool((exclude >= 0).any()))
    if not 1 <= k <= available:
        raise ValueError(
            f"k must be 1 to {available} (rows in the bank{' besides the query' if available < len(bank) else ''}), got {k}"
        )
    if exclude is not None and (exclude.shape != (len(queries),) or bool((exclude >= len(bank)).any())):
        raise ValueError(f"exclude must hold {len(queries)} row numbers below {len(bank)} (or -1)")
    if exact is not None and (exact.shape != bank.shape or not exact.is_floating_point()):
        raise ValueError(f"exact must be {tuple(bank.shape)} like bank, got {exact.dtype} {tuple(exact.shape)}")
    check_products(facts.longest, asked.longest)
    warn_of_zeros("bank", len(bank), facts)
    warn_of_zeros("queries", len(queries), asked)
    return prepare(bank, facts, exact)


def _block(bank: Prepared, k: int) -> int:
    """Queries at a time."""
    if not bank.is_read_again:
        return BLOCK
    return BLOCK * max(1, HELD.get(bank.device.type, HELD["cpu"]) // (k + MARGIN) // BLOCK)


def _brought(bank: Tensor, home: torch.device) -> Tensor:
    """The bank on the GPU if it takes less than half of what is free there."""
    if home.type != "cuda" or bank.device.type == "cuda":
        return bank
    free, _ = torch.cuda.mem_get_info(home)
    return bank.to(home) if 2 * bank.numel() * bank.element_size() < free else bank
