"""Few-shot classification: n labelled images a class, the class whose mean feature is nearest wins."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from reptk.core import rng
from reptk.evaluate.mean import Mean
from reptk.neighbors import check_vectors


def few_shot(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    *,
    shots: Sequence[int] = (1, 5, 10),
    draws: int = 5,
    exclude: Tensor | None = None,
) -> dict[str, float]:
    """Accuracy with n images a class (nearest class mean: Snell et al. 2017, arXiv 1703.05175; cosine similarity).

    Args:
        bank: (n, F) features to draw the images from; rows with label -1 are left out.
        bank_labels: (n,) classes. A class with fewer images than asked for gives all it has.
        queries: (q, F) features; those with label -1 are passed over.
        query_labels: (q,) classes.
        shots: images a class.
        draws: how many times the images are drawn; the same draws in every call.
        exclude: (q,) the row of `bank` that is the query itself, -1 for none: a query drawn as an example is passed over
            in that draw.

    Returns:
        `few_shot@N`, the mean over queries and draws (with its `interval()` over queries), and `few_shot_std@N`, the
        standard deviation between draws.

    Raises:
        ValueError: no labels, values that are not finite, or shots or draws below 1.
    """
    if not shots or min(shots) < 1 or draws < 1:
        raise ValueError(f"shots and draws must be at least 1, got {list(shots)} and {draws}")
    check_vectors("bank", bank)
    check_vectors("queries", queries)
    asked = query_labels >= 0
    if not asked.any() or not (bank_labels >= 0).any():
        raise ValueError("few-shot classification needs labels in the bank and on the queries")
    own = exclude[asked] if exclude is not None else torch.full((int(asked.sum()),), -1)
    unit = functional.normalize(bank.float(), dim=1)
    made: dict[str, float] = {}
    for n in sorted(set(shots)):
        right = torch.stack(
            [
                _draw(unit, bank_labels, queries[asked].float(), query_labels[asked], own, n, draw)
                for draw in range(draws)
            ]
        )
        made[f"few_shot@{n}"] = Mean(right.nanmean(0))
        if draws > 1:
            made[f"few_shot_std@{n}"] = right.nanmean(1).std().item()
    return made


def _draw(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, query_labels: Tensor, own: Tensor, n: int, draw: int
) -> Tensor:
    """(q,) 1 where the query is classified as labelled, NaN where it is itself one of the examples."""
    chosen = examples(bank_labels, n, draw)
    classes = int(bank_labels.max()) + 1
    means = torch.zeros(classes, bank.shape[1]).index_add_(0, bank_labels[chosen], bank[chosen])
    scores = queries @ functional.normalize(means, dim=1).T
    absent = torch.bincount(bank_labels[chosen], minlength=classes) == 0
    answers = scores.masked_fill_(absent, -torch.inf).argmax(1)
    return torch.where(torch.isin(own, chosen), torch.nan, (answers == query_labels).float())


def examples(labels: Tensor, n: int, draw: int) -> Tensor:
    """Rows of n images of each class (all, where there are fewer), drawn alike each time; unlabelled rows are never drawn."""
    rank = rng.uniform(rng.key("few_shot", draw), torch.tensor([0]), torch.arange(len(labels)))[:, 0]
    by_rank = rank.argsort(stable=True)
    order = by_rank[labels[by_rank].argsort(stable=True)]
    order = order[labels[order] >= 0]
    counts = torch.bincount(labels[order])
    place = torch.arange(len(order)) - (counts.cumsum(0) - counts)[labels[order]]
    return order[place < n]
