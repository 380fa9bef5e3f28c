"""Small banks and queries, and kNN and retrieval metrics of them written out in NumPy."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

CLASS_SIZES = [1, 2, 3, 5, 8, 13, 21]
NUM_CLASSES = len(CLASS_SIZES)

Metrics = dict[str, float]


class Problem(NamedTuple):
    """The arguments of `knn` and `retrieval`."""

    bank: Tensor
    bank_labels: Tensor
    queries: Tensor
    query_labels: Tensor
    exclude: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self[:4]


def unit_rows(count: int, width: int = 12, seed: int = 0) -> Tensor:
    stream = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(count, width, generator=stream), dim=1)


def separate_queries(seed: int = 0) -> Problem:
    """Bank and 40 queries of seven classes of very uneven size, loosely clustered."""
    classes = torch.arange(NUM_CLASSES).repeat_interleave(torch.tensor(CLASS_SIZES))
    labels = classes[torch.randperm(len(classes), generator=torch.Generator().manual_seed(seed))]
    centers = unit_rows(NUM_CLASSES, seed=seed + 1)
    bank = functional.normalize(0.6 * centers[labels] + unit_rows(len(labels), seed=seed + 2), dim=1)
    query_labels = torch.arange(40) % NUM_CLASSES
    queries = functional.normalize(0.6 * centers[query_labels] + unit_rows(40, seed=seed + 3), dim=1)
    return Problem(bank, labels, queries, query_labels)


def leave_one_out() -> Problem:
    bank, labels, _, _, _ = separate_queries()
    return Problem(bank, labels, bank, labels, torch.arange(len(bank)))


def partly_labeled() -> Problem:
    bank, labels, _, _, _ = separate_queries()
    labels = torch.where(torch.arange(len(labels)) % 3 == 0, -1, labels)
    return Problem(bank, labels, bank, labels, torch.arange(len(bank)))


def partly_excluded() -> Problem:
    """Ten queries that are in the bank, and 40 that are not."""
    bank, labels, queries, query_labels, _ = separate_queries()
    exclude = torch.cat([torch.arange(10), torch.full((len(queries),), -1)])
    return Problem(bank, labels, torch.cat([bank[:10], queries]), torch.cat([labels[:10], query_labels]), exclude)


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "separate queries": separate_queries,
    "leave one out": leave_one_out,
    "partly labeled": partly_labeled,
    "partly excluded": partly_excluded,
}


def ranking(problem: Problem, query: int) -> tuple[list[int], np.ndarray]:
    """Labeled rows of the bank other than the query itself, best first, and the similarities of all rows."""
    similarities = problem.bank.double().numpy() @ problem.queries[query].double().numpy()
    excluded = -1 if problem.exclude is None else int(problem.exclude[query])
    order = [
        row for row in np.argsort(-similarities, kind="stable") if row != excluded and problem.bank_labels[row] >= 0
    ]
    return order, similarities


def labeled_queries(problem: Problem) -> list[int]:
    return (problem.query_labels >= 0).nonzero()[:, 0].tolist()


def reference_knn(problem: Problem, k: int, temperature: float = 0.07) -> Metrics:
    """Wu et al. 2018: class c scores the sum of exp(s / t) over its rows among the k nearest; majority: their number."""
    weighted_correct, majority_correct = [], []
    for query in labeled_queries(problem):
        order, similarities = ranking(problem, query)
        weight, count = np.zeros(NUM_CLASSES), np.zeros(NUM_CLASSES)
        for row in order[:k]:
            weight[problem.bank_labels[row]] += np.exp(similarities[row] / temperature)
            count[problem.bank_labels[row]] += 1
        majority = max(range(NUM_CLASSES), key=lambda label: (count[label], weight[label], -label))
        weighted_correct.append(weight.argmax() == problem.query_labels[query])
        majority_correct.append(majority == problem.query_labels[query])
    return {f"knn@{k}": float(np.mean(weighted_correct)), f"knn_majority@{k}": float(np.mean(majority_correct))}


def reference_retrieval(problem: Problem, k: list[int]) -> Metrics:
    """Musgrave et al. 2020 (arXiv 2003.08505): r / R, and (1 / R) sum_{i <= R} P(i) with P(i) = 0 at a miss."""
    hits_by_query = []
    for query in labeled_queries(problem):
        order, _ = ranking(problem, query)
        hits_by_query.append([int(problem.bank_labels[row] == problem.query_labels[query]) for row in order])
    depth = max(*k, *(sum(hits) for hits in hits_by_query))
    values = []
    for hits in hits_by_query:
        r = sum(hits)
        if r == 0:
            continue
        precisions = [sum(hits[: i + 1]) / (i + 1) for i in range(r) if hits[i]]
        reciprocal_rank = 1 / (hits.index(1) + 1) if 1 in hits[:depth] else 0.0
        recalls = [float(any(hits[:value])) for value in k]
        values.append([*recalls, reciprocal_rank, sum(precisions) / r, sum(hits[:r]) / r])
    names = [*(f"recall@{value}" for value in k), "mrr", "map@r", "r_precision"]
    return dict(zip(names, np.mean(values, axis=0).tolist(), strict=True))


def with_nan(rows: Tensor, *numbers: int) -> Tensor:
    rows = rows.clone()
    rows[list(numbers), 1] = float("nan")
    return rows
