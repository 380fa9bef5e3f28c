"""One search, any number of measures: neighbours stream by in blocks and every measure counts what it needs."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from reptk.core import distributed
from reptk.data import Data
from reptk.evaluate.features import Features
from reptk.evaluate.mean import Mean
from reptk.evaluate.near import Search
from reptk.neighbors import check_vectors, search, search_sharded


class Measure(Protocol):
    """Something that is counted over the neighbours of all queries."""

    depth: int

    def add(self, labels: Tensor, similarities: Tensor, rows: Tensor) -> None: ...

    def results(self) -> dict[str, Mean]: ...


@dataclass(frozen=True)
class Labelled:
    """A bank and queries, all with classes. Under several ranks the rows are this rank's, where `is_shared`.

    Args:
        bank: (n, F); `bank_labels` (N,) are those of all ranks' rows, and `bank_numbers` (N,) say which of the given ones.
        queries: (q, F), `query_labels` (q,) and `query_numbers` (q,) likewise, of this rank's queries.
        exclude: (q,) the row of the bank, counted over all ranks, that is the query itself, or -1.
        is_shared: whether every rank holds a part of bank and queries.
    """

    bank: Tensor
    bank_labels: Tensor
    bank_numbers: Tensor
    queries: Tensor
    query_labels: Tensor
    query_numbers: Tensor
    exclude: Tensor | None
    is_shared: bool = False

    def neighbours(self) -> int:
        """How many rows a query can be compared with."""
        own = self.exclude is not None and bool(self.together(self.exclude >= 0).any())
        return len(self.bank_labels) - own

    def relevant(self) -> Tensor:
        """(q,) how many rows of each query's class there are to find.

        Raises:
            ValueError: none for any query.
        """
        classes = int(max(self.bank_labels.max(), self.together(self.query_labels).max())) + 1
        found = torch.bincount(self.bank_labels, minlength=classes)[self.query_labels]
        if self.exclude is not None:
            found = found - (self.exclude >= 0).long()
        if not (self.together(found) > 0).any():
            raise ValueError("no query has another image of its class in the bank")
        return found

    def together(self, rows: Tensor) -> Tensor:
        """What all ranks have for their queries, in the order of the queries."""
        return distributed.all_gather_uneven(rows) if self.is_shared else rows


def shared_out(encode: Features, data: Data, exclude: Tensor | None) -> Labelled:
    """As `labelled`, of features that stay where they were made: on a single process all, else this rank's part."""
    if distributed.world_size() == 1:
        return labelled(encode(data.bank), data.bank.labels, encode(data.query), data.query.labels, exclude)
    (bank, first_row), (queries, first_query) = encode.part(data.bank), encode.part(data.query)
    kept, asked = data.bank.labels >= 0, data.query.labels >= 0
    for name, found in (("bank", kept), ("query", asked)):
        if not found.any():
            raise ValueError(f"no {name} row has a label")
    own = slice(first_query, first_query + len(queries))
    mine = asked[own]
    return Labelled(
        bank[kept[first_row : first_row + len(bank)]],
        data.bank.labels[kept],
        kept.nonzero()[:, 0],
        queries[mine],
        data.query.labels[own][mine],
        first_query + mine.nonzero()[:, 0],
        None if exclude is None else _renumbered(exclude, kept)[own][mine],
        is_shared=True,
    )


def labelled(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, query_labels: Tensor, exclude: Tensor | None = None
) -> Labelled:
    """Check the shapes and leave out rows and queries without a class (-1).

    Raises:
        ValueError: numbers of rows and labels that differ, or nothing left.
    """
    for name, rows, labels in (("bank", bank, bank_labels), ("query", queries, query_labels)):
        if len(rows) != len(labels) or labels.ndim != 1:
            raise ValueError(f"{len(rows)} {name} rows but labels of shape {tuple(labels.shape)}")
        if not (labels >= 0).any():
            raise ValueError(f"no {name} row has a label")
        if (labels < 0).any():  # the search looks at rows that are all kept, and names the same numbers
            check_vectors("bank" if name == "bank" else "queries", rows)
    if exclude is not None and (exclude.shape != query_labels.shape or int(exclude.max()) >= len(bank)):
        raise ValueError(f"exclude must hold {len(queries)} row numbers below {len(bank)} (or -1)")
    bank, queries = (rows if rows.is_cuda else rows.cpu() for rows in (bank, queries))
    bank_labels, query_labels = bank_labels.cpu().long(), query_labels.cpu().long()
    kept, asked = bank_labels >= 0, query_labels >= 0
    if exclude is not None:
        exclude = _renumbered(exclude.cpu(), kept)[asked]
    return Labelled(*_only(kept, bank, bank_labels), *_only(asked, queries, query_labels), exclude)


def tally(data: Labelled, *measures: Measure, find: Search | None = None) -> dict[str, Mean]:
    """Search once, as deep as the deepest measure, and count. Rows of -1 are neighbours that `find` did not find."""
    find = find or (search_sharded if data.is_shared else search)
    depth = max(measure.depth for measure in measures)
    for measure in measures:  # a rank may have no query of its own, and still has to know what is measured
        measure.add(data.query_labels[:0], torch.zeros(0, depth), torch.zeros(0, depth, dtype=torch.long))
    first = 0
    for similarities, rows in find(data.bank, data.queries, depth, data.exclude):
        labels = data.query_labels[first : first + len(rows)]
        first += len(rows)
        for measure in measures:
            measure.add(labels, similarities, rows)
    found = {name: value for measure in measures for name, value in measure.results().items()}
    return {name: Mean(data.together(value.values)) for name, value in found.items()} if data.is_shared else found


def _renumbered(rows: Tensor, kept: Tensor) -> Tensor:
    """Row numbers of the bank after only the kept rows remain; -1 for a row that is gone."""
    new = torch.where(kept, kept.cumsum(0) - 1, -1)
    return torch.where(rows >= 0, new[rows.clamp_min(0)], -1)


def _only(wanted: Tensor, rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The wanted rows, their labels, and their numbers; nothing is copied where all are wanted."""
    if wanted.all():
        return rows, labels, torch.arange(len(rows))
    return rows[wanted.to(rows.device)], labels[wanted], wanted.nonzero()[:, 0]
