"""Few-shot classification: with n labeled images per class, the class with the nearest mean feature is predicted."""

import warnings
from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor
from torch.nn import functional

from reptk.config.registry import EVALUATORS
from reptk.core import rng
from reptk.core.arrays import as_tensor
from reptk.data import Data
from reptk.evaluate.features import FeatureStore
from reptk.evaluate.intervals import QueryMean
from reptk.evaluate.neighbor_stream import check_exclude, self_index
from reptk.evaluate.protocol import EvalResult, Evaluator, PositiveInts
from reptk.neighbors import check_vectors

NO_SELF = -1
"""Marks a query that is no row of the bank."""


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
    """Compute the accuracy with n images per class (nearest class mean: Snell et al. 2017, arXiv 1703.05175; cosine).

    Args:
        bank: (n, F) features to draw the images from; rows with label -1 are left out.
        bank_labels: (n,) classes. A class with fewer images than requested gives all it has; more than any class has are
            lowered to the largest class, with a warning.
        queries: (q, F) features; those with label -1 are skipped.
        query_labels: (q,) classes.
        shots: images per class.
        draws: how many times the images are drawn; the same draws in every call.
        exclude: (q,) the row of `bank` that is the query itself, -1 for none: a query that is drawn as an example does not
            count in that draw.

    Returns:
        `few_shot@N`, the mean over queries and draws (with its `interval()` over queries), and `few_shot_std@N`, the
        standard deviation between draws.

    Raises:
        ValueError: no labels, values that are not finite, `exclude` of another length, or shots or draws below 1.
    """
    if not shots or min(shots) < 1 or draws < 1:
        raise ValueError(f"shots and draws must be at least 1, got {list(shots)} and {draws}")
    bank, bank_labels = as_tensor("bank", bank), as_tensor("bank_labels", bank_labels)
    queries, query_labels = as_tensor("queries", queries), as_tensor("query_labels", query_labels)
    check_vectors("bank", bank)
    check_vectors("queries", queries)
    is_labeled = query_labels >= 0
    if not is_labeled.any() or not (bank_labels >= 0).any():
        raise ValueError("few-shot classification needs labels in the bank and on the queries")
    queries, query_labels = queries[is_labeled].float(), query_labels[is_labeled]
    if exclude is None:
        exclude = torch.full((len(queries),), NO_SELF)
    else:
        exclude = as_tensor("exclude", exclude)
        check_exclude(exclude, len(bank), len(is_labeled))
        exclude = exclude[is_labeled]
    bank = functional.normalize(bank.float(), dim=1)
    metrics: dict[str, float] = {}
    for n in _available_shots(shots, bank_labels):
        # (draws, q): 1 correct, 0 wrong, NaN for a query that is one of the examples
        correct = torch.full((draws, len(queries)), torch.nan)
        for draw in range(draws):
            examples = draw_examples(bank_labels, n, draw)
            predicted = _nearest_class_mean(bank[examples], bank_labels[examples], queries)
            is_example = torch.isin(exclude, examples)
            correct[draw] = torch.where(is_example, torch.nan, (predicted == query_labels).float())
        metrics[f"few_shot@{n}"] = QueryMean(correct.nanmean(0))
        if draws > 1:
            metrics[f"few_shot_std@{n}"] = correct.nanmean(1).std().item()
    return metrics


def _available_shots(shots: Sequence[int], bank_labels: Tensor) -> list[int]:
    """Return the different numbers of shots, sorted, none above the size of the largest class."""
    largest_class = int(torch.bincount(bank_labels[bank_labels >= 0]).max())
    if max(shots) > largest_class:
        warnings.warn(
            f"no class has {max(shots)} images; few-shot accuracy is measured with {largest_class} instead",
            stacklevel=3,
        )
    return sorted({min(n, largest_class) for n in shots})


def draw_examples(labels: Tensor, n: int, draw: int) -> Tensor:
    """Return rows of n images of each class (of all images, if a class has fewer); a function of `labels` and `draw`.

    The first examples of a larger n are those of a smaller one. Rows without a label are never drawn.
    """
    random = rng.uniform(rng.key("few_shot", draw), torch.tensor([0]), torch.arange(len(labels)))[:, 0]
    shuffled = random.argsort(stable=True)
    # A stable sort by class keeps the random order within each class.
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    by_class = by_class[labels[by_class] >= 0]
    counts = torch.bincount(labels[by_class])
    first_of_class = counts.cumsum(0) - counts
    rank_in_class = torch.arange(len(by_class)) - first_of_class[labels[by_class]]
    return by_class[rank_in_class < n]


def _nearest_class_mean(examples: Tensor, labels: Tensor, queries: Tensor) -> Tensor:
    """(q,) the class whose mean of unit rows is most similar to each query."""
    num_classes = int(labels.max()) + 1
    sums = torch.zeros(num_classes, examples.shape[1]).index_add_(0, labels, examples)
    # Dividing a sum by its count does not change its direction, so sums are as good as means.
    scores = queries @ functional.normalize(sums, dim=1).T
    is_absent = torch.bincount(labels, minlength=num_classes) == 0
    return scores.masked_fill_(is_absent, -torch.inf).argmax(1)


@EVALUATORS.register("few_shot")
class FewShot(Evaluator):
    """Accuracy with few labeled images per class; see `reptk.evaluate.few_shot`.

    Args:
        shots: images per class.
        draws: how many times they are drawn.
    """

    def __init__(self, shots: PositiveInts = (1, 5, 10), draws: Annotated[int, Ge(1)] = 5) -> None:
        self.shots = shots
        self.draws = draws

    def __call__(self, features: FeatureStore, data: Data) -> EvalResult:
        metrics = few_shot(
            features.features(data.bank),
            data.bank.labels,
            features.features(data.query),
            data.query.labels,
            shots=self.shots,
            draws=self.draws,
            exclude=self_index(data),
        )
        return EvalResult(metrics)
