"""Accuracy of the classifier that was trained with the encoder."""

import torch
from torch import Tensor

from reptk.config.registry import EVALUATORS
from reptk.core.errors import NonFiniteValues
from reptk.data import Data
from reptk.evaluate.features import FeatureStore
from reptk.evaluate.intervals import QueryMean
from reptk.evaluate.protocol import EvalResult, Evaluator, PositiveInts

CHANCE = "most_frequent_class"
"""Key of the note on chance: the share of the queries that are of the most frequent class."""

CHUNK = 1 << 14
"""Rows that are classified at a time."""


@EVALUATORS.register("accuracy")
class Accuracy(Evaluator):
    """Accuracy on the queries of the classifier that was trained with the encoder, by methods such as `classify`.

    An encoder that has a classifier gets this evaluator even if no table names it. Nothing is fitted, and the bank is not used.

    Args:
        k: `accuracy@k` for these k, the share of queries whose class is among the k highest scores; `accuracy` for 1. A k that
            is not below the number of classes is left out.
    """

    needs_classifier = True

    def __init__(self, k: PositiveInts = (1, 5)) -> None:
        self.k = sorted(set(k))

    def __call__(self, features: FeatureStore, data: Data) -> EvalResult:
        h = features.raw(data.query)
        # After `raw`: images that cannot be read lose their labels when they are encoded.
        is_labeled = data.query.labels >= 0
        h, labels = h[is_labeled], data.query.labels[is_labeled]
        if not len(labels):
            raise ValueError("no query has a label")
        ranks, num_classes = _ranks(features, h, labels)
        ks = [k for k in self.k if k < num_classes] or [1]
        metrics = {}
        for k in ks:
            name = "accuracy" if k == 1 else f"accuracy@{k}"
            metrics[name] = QueryMean((ranks < k).float())
        chance = labels.bincount().max().item() / len(labels)
        return EvalResult(metrics, notes={"accuracy": {CHANCE: round(chance, 6)}})


@torch.no_grad()
def _ranks(features: FeatureStore, h: Tensor, labels: Tensor) -> tuple[Tensor, int]:
    """Return how many classes have a higher score than the label of each row (n, F), as (n,); and the number of classes."""
    ranks = []
    for rows, row_labels in zip(h.split(CHUNK), labels.split(CHUNK), strict=True):
        scores = features.classifier(rows.to(features.device)).float()
        if not scores.isfinite().all():
            raise NonFiniteValues("scores of the classifier hold NaN or infinity")
        order = scores.argsort(dim=1, descending=True, stable=True)
        is_label = order == row_labels.to(order.device)[:, None]
        ranks.append(is_label.int().argmax(1).cpu())
    return torch.cat(ranks), scores.shape[1]
