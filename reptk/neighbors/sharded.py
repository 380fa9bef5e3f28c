"""A bank whose rows are shared out among the ranks, searched as if it were in one place."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from reptk.core import distributed
from reptk.neighbors import order
from reptk.neighbors.engine import device, engine_name
from reptk.neighbors.exact import BLOCK, Prepared, nearest_keys, prepare
from reptk.neighbors.rows import Facts, check_products, check_vectors, warn_of_zeros


def search_sharded(
    part: Tensor, queries: Tensor, k: int, exclude: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """`search` by every rank for its own queries in the rows of all; the same, bit for bit, however rows are shared out.

    All ranks have to call it and take all blocks. For every block queries are gathered once, each rank looks among its own
    rows, and one gather brings the candidates together, 8 bytes each.

    Args:
        part: (n_rank, F) this rank's rows. Row 0 of rank 1 has the number that follows rank 0's last one, and so on.
        queries: (q_rank, F) this rank's queries: as many as it likes, none too.
        k: neighbours.
        exclude: (q_rank,) the row, counted over all ranks, that is the query itself and must not be found; -1 for none.

    Yields:
        similarities (b, k) float32 and rows (b, k), counted over all ranks, on the CPU, in the order of this rank's queries.

    Raises:
        ValueError: what `search` raises; on every rank, even if the rows of one are at fault.
    """
    home = torch.device("cpu") if engine_name() == "faiss" else device()
    own = torch.full((len(queries),), -1) if exclude is None else exclude.cpu()
    ranks = _agree(part, queries, k, own, home)
    bank = prepare(part, Facts(max(ranks.longest), 0, [])) if len(part) else None
    for first in range(0, max(ranks.queries), BLOCK):
        counts = [min(BLOCK, max(0, count - first)) for count in ranks.queries]
        asked = distributed.all_gather_uneven(queries[first : first + BLOCK].float().to(home), counts)
        left_out = distributed.all_gather_uneven(own[first : first + BLOCK].to(home), counts)
        made = _among_own(bank, asked, left_out, k, sum(ranks.rows[: distributed.rank()]), len(part))
        mine = sum(counts[: distributed.rank()])
        # (ranks, queries of all, k): every rank's candidates for this rank's queries
        candidates = distributed.all_gather(made[None])[:, mine : mine + counts[distributed.rank()]]
        if candidates.shape[1]:
            best = order.nearest(candidates.transpose(0, 1).flatten(1), k).cpu()
            yield order.similarities(best), order.rows(best)


@dataclass(frozen=True)
class _Ranks:
    """Of every rank: numbers of rows and of queries, and the greatest length of a row."""

    rows: list[int]
    queries: list[int]
    longest: list[float]


def _agree(part: Tensor, queries: Tensor, k: int, own: Tensor, home: torch.device) -> _Ranks:
    """Look at the rows, tell each other, and refuse together what one has to refuse."""
    facts, asked, problem = Facts(0.0, 0, []), Facts(0.0, 0, []), None
    try:
        facts, asked = check_vectors("bank", part), check_vectors("queries", queries)
        if own.shape != (len(queries),):
            raise ValueError(f"exclude must hold {len(queries)} row numbers (or -1), got {tuple(own.shape)}")
        if part.shape[1] != queries.shape[1]:
            raise ValueError(f"bank rows have {part.shape[1]} values, query rows {queries.shape[1]}")
    except ValueError as error:
        problem = error
    last = int(own.max()) if len(own) else -1
    told = [problem is None, len(part), len(queries), part.shape[-1], k, last, facts.longest, asked.longest]
    all_told = distributed.all_gather(torch.tensor([told], dtype=torch.float64, device=home)).tolist()
    fine, rows, counts, widths, ks, lasts, longest, longest_asked = zip(*all_told, strict=True)
    if problem is not None:
        raise problem
    if not all(fine):
        raise ValueError(f"rank {fine.index(0.0)} has rows that cannot be searched; its own message says why")
    if len(set(widths)) > 1 or len(set(ks)) > 1:
        raise ValueError(f"ranks differ: widths {[*map(int, widths)]}, k {[*map(int, ks)]}")
    available = int(sum(rows)) - (max(lasts) >= 0)
    if not 1 <= k <= available:
        raise ValueError(f"k must be 1 to {available} (rows of all ranks, besides the query), got {k}")
    if max(lasts) >= sum(rows):
        raise ValueError(f"exclude must hold row numbers below {int(sum(rows))} (or -1), got {int(max(lasts))}")
    check_products(max(longest), max(longest_asked))
    warn_of_zeros("bank", len(part), facts)
    warn_of_zeros("queries", len(queries), asked)
    return _Ranks([*map(int, rows)], [*map(int, counts)], list(longest))


def _among_own(bank: Prepared | None, queries: Tensor, own: Tensor, k: int, first_row: int, count: int) -> Tensor:
    """(b, k) keys of this rank's nearest rows, counted over all ranks; filled up where it has fewer."""
    made = torch.full((len(queries), k), order.NONE, device=queries.device)
    if bank is None:
        return made
    within = torch.where((own >= first_row) & (own < first_row + count), own - first_row, -1)
    found = nearest_keys(bank, queries, within, min(k, count))
    made[:, : found.shape[1]] = torch.where(found == order.NONE, order.NONE, found - first_row)
    return made
