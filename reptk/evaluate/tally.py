"""One search, any number of measures: neighbours stream by in blocks and every measure counts what it needs."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from reptk.evaluate.mean import Mean
from reptk.neighbours import check_rows, search


class Measure(Protocol):
    """Something that is counted over the neighbours of all queries."""

    depth: int

    def add(self, labels: Tensor, similarities: Tensor, rows: Tensor) -> None: ...

    def results(self) -> dict[str, Mean]: ...


@dataclass(frozen=True)
class Labelled:
    """A bank and queries, all with classes.

    `exclude` is the row of the bank that is the query itself, or -1; `bank_numbers` and `query_numbers` say which of the
    given rows these are.
    """

    bank: Tensor
    bank_labels: Tensor
    bank_numbers: Tensor
    queries: Tensor
    query_labels: Tensor
    query_numbers: Tensor
    exclude: Tensor | None

    def neighbours(self) -> int:
        """How many rows a query can be compared with."""
        return len(self.bank) - (self.exclude is not None and bool((self.exclude >= 0).any()))

    def relevant(self) -> Tensor:
        """(q,) how many rows of each query's class there are to find.

        Raises:
            ValueError: none for any query.
        """
        classes = int(max(self.bank_labels.max(), self.query_labels.max())) + 1
        found = torch.bincount(self.bank_labels, minlength=classes)[self.query_labels]
        if self.exclude is not None:
            found = found - (self.exclude >= 0).long()
        if not (found > 0).any():
            raise ValueError("no query has another image of its class in the bank")
        return found


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
        check_rows("bank" if name == "bank" else "queries", rows)
    if exclude is not None and (exclude.shape != query_labels.shape or int(exclude.max()) >= len(bank)):
        raise ValueError(f"exclude must hold {len(queries)} row numbers below {len(bank)} (or -1)")
    bank, bank_labels = bank.cpu(), bank_labels.cpu().long()
    queries, query_labels = queries.cpu(), query_labels.cpu().long()
    kept, asked = bank_labels >= 0, query_labels >= 0
    if exclude is not None:
        exclude = _renumbered(exclude.cpu(), kept)[asked]
    return Labelled(*_only(kept, bank, bank_labels), *_only(asked, queries, query_labels), exclude)


def tally(data: Labelled, *measures: Measure) -> dict[str, Mean]:
    """Search once, as deep as the deepest measure, and count."""
    depth = max(measure.depth for measure in measures)
    first = 0
    for similarities, rows in search(data.bank, data.queries, depth, data.exclude):
        labels = data.query_labels[first : first + len(rows)]
        first += len(rows)
        for measure in measures:
            measure.add(labels, similarities, rows)
    return {name: value for measure in measures for name, value in measure.results().items()}


def _renumbered(rows: Tensor, kept: Tensor) -> Tensor:
    """Row numbers of the bank after only the kept rows remain; -1 for a row that is gone."""
    new = torch.where(kept, kept.cumsum(0) - 1, -1)
    return torch.where(rows >= 0, new[rows.clamp_min(0)], -1)


def _only(wanted: Tensor, rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The wanted rows, their labels, and their numbers; nothing is copied where all are wanted."""
    if wanted.all():
        return rows, labels, torch.arange(len(rows))
    return rows[wanted], labels[wanted], wanted.nonzero()[:, 0]
