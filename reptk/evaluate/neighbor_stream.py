"""One search, any number of metrics: blocks of neighbors are passed to every metric, which accumulates what it needs."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from reptk.core import distributed
from reptk.core.arrays import as_tensor
from reptk.data import Data
from reptk.evaluate.features import FeatureStore
from reptk.evaluate.intervals import QueryMean
from reptk.neighbors import Engine, check_vectors, search, search_sharded


class Search(Protocol):
    """`reptk.neighbors.search`, or what replaces it."""

    def __call__(
        self, bank: Tensor, queries: Tensor, k: int, exclude: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]: ...


class StreamMetric(Protocol):
    """A metric of the neighbors of all queries."""

    depth: int
    """Neighbors that it needs of each query."""

    def update(self, labels: Tensor, similarities: Tensor, rows: Tensor) -> None:
        """Add a block: the queries' classes (b,), the similarities and rows (b, depth or more) of their neighbors.

        Row -1 with similarity -inf is a missing neighbor.
        """

    def compute(self) -> Mapping[str, float]:
        """Return the metrics of all queries so far, by name. On several ranks all of them have to be `QueryMean`s."""


class QueryTable:
    """Columns with a row per query, filled block by block.

    They are allocated as a whole: small tensors that stay between large ones that are freed fragment the heap, so that memory
    grows with every block, and a slice of a block would keep all of it.

    Args:
        num_queries: rows.
    """

    def __init__(self, num_queries: int) -> None:
        self.columns: dict[str, Tensor] = {}
        self._num_queries = num_queries
        self._num_filled = 0

    def append(self, block: Mapping[str, Tensor]) -> None:
        """Copy a block's columns (b, ...) into the next b rows."""
        for name, values in block.items():
            if name not in self.columns:
                self.columns[name] = values.new_empty(self._num_queries, *values.shape[1:])
            self.columns[name][self._num_filled : self._num_filled + len(values)] = values
        self._num_filled += len(values)


@dataclass(frozen=True)
class RetrievalTask:
    """A bank and queries, all of them labeled. If `is_sharded`, rows are those of this rank.

    Args:
        bank: (n, F).
        bank_labels: (N,) classes of all ranks' rows; N = n unless sharded.
        bank_index: (N,) their indices in the bank's split, of which unlabeled rows were dropped.
        queries: (q, F).
        query_labels, query_index: (q,) of this rank's queries.
        exclude: (q,) the row of the bank, counted over all ranks, that is the query itself, or -1.
        is_sharded: whether every rank holds a part of the bank and of the queries.
    """

    bank: Tensor
    bank_labels: Tensor
    bank_index: Tensor
    queries: Tensor
    query_labels: Tensor
    query_index: Tensor
    exclude: Tensor | None
    is_sharded: bool = False

    def max_k(self) -> int:
        """Return how many rows of the bank every query can be compared with."""
        if self.exclude is None:
            return len(self.bank_labels)
        excludes_any = bool(self.all_gather(self.exclude >= 0).any())
        # A query that is a row of the bank has one row less to be compared with, and all queries get the same k.
        return len(self.bank_labels) - int(excludes_any)

    def relevant_counts(self) -> Tensor:
        """Return (q,) how many rows of the bank have the query's class, the query itself not counted.

        Raises:
            ValueError: there are none for any query.
        """
        largest_query_label = self.all_gather(self.query_labels).max()
        num_classes = int(max(self.bank_labels.max(), largest_query_label)) + 1
        counts = torch.bincount(self.bank_labels, minlength=num_classes)[self.query_labels]
        if self.exclude is not None:
            counts = counts - (self.exclude >= 0).long()
        if not (self.all_gather(counts) > 0).any():
            raise ValueError("no query has another image of its class in the bank")
        return counts

    def all_gather(self, rows: Tensor) -> Tensor:
        """Return the rows of all ranks' queries, in the order of the queries."""
        if not self.is_sharded:
            return rows
        return distributed.all_gather_uneven(rows)


def labeled_task(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, query_labels: Tensor, exclude: Tensor | None = None
) -> RetrievalTask:
    """Check shapes and drop rows and queries without a class (-1). NumPy arrays are as good as tensors.

    Raises:
        ValueError: numbers of rows and labels that differ, or no labels.
        TypeError: something that is no array of numbers.
    """
    bank, bank_labels = as_tensor("bank", bank), as_tensor("bank_labels", bank_labels)
    queries, query_labels = as_tensor("queries", queries), as_tensor("query_labels", query_labels)
    if exclude is not None:
        exclude = as_tensor("exclude", exclude)
    _check_labels("bank", bank, bank_labels)
    _check_labels("query", queries, query_labels)
    if exclude is not None:
        check_exclude(exclude, len(bank), len(queries))
    bank_labels, query_labels = bank_labels.cpu().long(), query_labels.cpu().long()
    in_bank, in_queries = bank_labels >= 0, query_labels >= 0
    if exclude is not None:
        exclude = _renumbered(exclude.cpu(), in_bank)[in_queries]
    return RetrievalTask(
        bank=_selected(bank, in_bank),
        bank_labels=bank_labels[in_bank],
        bank_index=in_bank.nonzero()[:, 0],
        queries=_selected(queries, in_queries),
        query_labels=query_labels[in_queries],
        query_index=in_queries.nonzero()[:, 0],
        exclude=exclude,
    )


def dataset_task(features: FeatureStore, data: Data) -> RetrievalTask:
    """`labeled_task` of a data set's bank and queries; on several ranks every one keeps the rows that it encoded.

    Raises:
        ValueError: no labels.
    """
    if distributed.world_size() == 1:
        return gathered_task(features, data)
    bank, first_row = features.local_part(data.bank)
    queries, first_query = features.local_part(data.query)
    in_bank, in_queries = data.bank.labels >= 0, data.query.labels >= 0
    for name, has_label in (("bank", in_bank), ("query", in_queries)):
        if not has_label.any():
            raise ValueError(f"no {name} row has a label")
    local_rows = slice(first_row, first_row + len(bank))
    local_queries = slice(first_query, first_query + len(queries))
    is_labeled = in_queries[local_queries]
    exclude = self_index(data)
    if exclude is not None:
        exclude = _renumbered(exclude, in_bank)[local_queries][is_labeled]
    return RetrievalTask(
        bank=bank[in_bank[local_rows]],
        bank_labels=data.bank.labels[in_bank],
        bank_index=in_bank.nonzero()[:, 0],
        queries=queries[is_labeled],
        query_labels=data.query.labels[local_queries][is_labeled],
        query_index=first_query + is_labeled.nonzero()[:, 0],
        exclude=exclude,
        is_sharded=True,
    )


def gathered_task(features: FeatureStore, data: Data) -> RetrievalTask:
    """`labeled_task` of a data set's bank and queries, with all rows on every rank."""
    return labeled_task(
        features.features(data.bank),
        data.bank.labels,
        features.features(data.query),
        data.query.labels,
        self_index(data),
    )


def exact_search(task: RetrievalTask, engine: Engine = "auto") -> Search:
    """Return the exact search of a task, which is spread over the ranks if its rows are."""
    function = search_sharded if task.is_sharded else search
    return partial(function, engine=engine)


def accumulate(
    task: RetrievalTask,
    metrics: Sequence[StreamMetric],
    search_fn: Search | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """Search once, as deep as the deepest metric needs, and return all metrics by name.

    Args:
        task: what is searched.
        metrics: updated with every block of neighbors, in the order of the queries.
        search_fn: replaces `exact_search(task)`.
        progress: called after every block with the number of queries that are done.
    """
    if search_fn is None:
        search_fn = exact_search(task)
    depth = max(metric.depth for metric in metrics)
    # A rank may have no queries; from an empty block its metrics have the names and types of the other ranks' ones.
    for metric in metrics:
        metric.update(task.query_labels[:0], torch.zeros(0, depth), torch.zeros(0, depth, dtype=torch.long))
    done = 0
    for similarities, rows in search_fn(task.bank, task.queries, depth, task.exclude):
        labels = task.query_labels[done : done + len(rows)]
        done += len(rows)
        for metric in metrics:
            metric.update(labels, similarities, rows)
        if progress is not None:
            progress(done)
    values: dict[str, float] = {}
    for metric in metrics:
        values |= metric.compute()
    # Every rank has the values of its own queries; a mean of means would weigh ranks, not queries.
    if task.is_sharded:
        values = {name: QueryMean(task.all_gather(value.values)) for name, value in values.items()}
    return values


def self_index(data: Data) -> Tensor | None:
    """Return (q,) the row of the bank that each query is; None if bank and queries are different splits."""
    # By identity: only the same split has the same rows in the same order.
    if data.bank is data.query:
        return torch.arange(len(data.query))
    return None


def clamp_k(ks: Sequence[int], max_k: int) -> list[int]:
    """Return the different k, sorted, none above `max_k`; a warning says so if one was."""
    if max(ks) > max_k:
        warnings.warn(f"k = {max(ks)} is more than the bank offers; {max_k} is used instead", stacklevel=2)
    return sorted({min(k, max_k) for k in ks})


def append_sentinel(values: Tensor, sentinel: int) -> Tensor:
    """Return (n + 1,) values by row, so that row -1, a missing neighbor, has the value `sentinel`."""
    return torch.cat([values, values.new_tensor([sentinel])])


def check_exclude(exclude: Tensor, num_rows: int, num_queries: int) -> None:
    """Raise ValueError unless `exclude` holds a row of the bank, or -1, for every query."""
    if exclude.shape != (num_queries,) or int(exclude.max()) >= num_rows:
        raise ValueError(f"exclude must hold {num_queries} row numbers below {num_rows} (or -1)")


def _check_labels(name: str, rows: Tensor, labels: Tensor) -> None:
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"{name} labels must be integers, got {labels.dtype}")
    if len(rows) != len(labels) or labels.ndim != 1:
        raise ValueError(f"{len(rows)} {name} rows but labels of shape {tuple(labels.shape)}")
    if not (labels >= 0).any():
        raise ValueError(f"no {name} row has a label")
    if (labels < 0).any():
        # Search checks the rows that are left; its message would count them without the dropped ones.
        vectors_name = "bank" if name == "bank" else "queries"
        check_vectors(vectors_name, rows)


def _renumbered(rows: Tensor, is_left: Tensor) -> Tensor:
    """Row numbers of the bank after the others have been dropped; -1 for a row that is dropped, and for -1."""
    new_numbers = torch.where(is_left, is_left.cumsum(0) - 1, -1)
    return torch.where(rows >= 0, new_numbers[rows.clamp_min(0)], -1)


def _selected(rows: Tensor, is_selected: Tensor) -> Tensor:
    """The selected rows, where they are (on a GPU or the CPU); nothing is copied if all are selected."""
    if not rows.is_cuda:
        rows = rows.cpu()
    if is_selected.all():
        return rows
    return rows[is_selected.to(rows.device)]
