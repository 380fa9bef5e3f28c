"""View retrieval, without any labels: does one random view of an image find the other among those of all images?"""

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from reptk.config.registry import EVALUATORS
from reptk.core import rng
from reptk.core.counts import format_count
from reptk.data import Data, Split
from reptk.data.protocol import subset
from reptk.evaluate.features import FeatureStore
from reptk.evaluate.intervals import QueryMean
from reptk.evaluate.neighbor_stream import clamp_k
from reptk.evaluate.predictions import MAX_NEIGHBORS, Predictions
from reptk.evaluate.protocol import EvalResult, Evaluator, PositiveInts
from reptk.neighbors import search


@EVALUATORS.register("view_retrieval")
class ViewRetrieval(Evaluator):
    """Without any labels: does one random view of an image find its other view among those of all images?

    Args:
        recall: `view_recall@k` for these k: the share of images whose other view is among the first k.
        limit: at most so many images, a sample that is the same for all encoders.
    """

    needs_labels = False

    def __init__(self, recall: PositiveInts = (1, 5), limit: Annotated[int, Ge(2)] = 10_000) -> None:
        self.recall = sorted(set(recall))
        self.limit = limit

    def __call__(self, features: FeatureStore, data: Data) -> EvalResult:
        index, split = _sample(data.train, self.limit)
        metrics = self._view_recall(features, split)
        predictions = _nearest_images(features, split, index, data.classes)
        return EvalResult(metrics, predictions=predictions)

    def during_training(self, features: FeatureStore, data: Data) -> EvalResult:
        """Return the metrics alone, without the neighbors of the images themselves."""
        _, split = _sample(data.train, self.limit)
        return EvalResult(self._view_recall(features, split))

    def _view_recall(self, features: FeatureStore, split: Split) -> dict[str, QueryMean]:
        bank, queries = features.view(split, 0), features.view(split, 1)
        is_readable = _readable(features, split)
        bank, queries = bank[is_readable], queries[is_readable]
        if len(bank) < 2:
            raise ValueError(f"an image is searched for among others, and there is {format_count(len(bank), 'image')}")
        recall = clamp_k(self.recall, len(bank))
        _, rows = _search(features, bank, queries, max(recall))
        # Row i of one view and row i of the other are of one image.
        hits = rows == torch.arange(len(bank))[:, None]
        metrics = {}
        for k in recall:
            metrics[f"view_recall@{k}"] = QueryMean(hits[:, :k].any(1).float())
        return metrics


def _readable(features: FeatureStore, split: Split) -> Tensor:
    """(n,) whether each image, all of which are encoded, could be read."""
    is_readable = torch.ones(len(split), dtype=torch.bool)
    is_readable[features.unreadable(split)] = False
    return is_readable


def _sample(split: Split, limit: int) -> tuple[Tensor, Split]:
    """At most `limit` images of a split: their indices in it, and the split of them."""
    if len(split) <= limit:
        return torch.arange(len(split)), split
    stream = rng.generator("view_retrieval")
    index = torch.randperm(len(split), generator=stream)[:limit].sort().values
    return index, subset(split, index)


def _search(
    features: FeatureStore, bank: Tensor, queries: Tensor, k: int, exclude: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Similarities and rows (q, k) of the neighbors of all queries."""
    similarities, rows = [], []
    done = 0
    for block_similarities, block_rows in search(bank, queries, k, exclude):
        similarities.append(block_similarities)
        rows.append(block_rows)
        done += len(block_rows)
        features.report_progress("searching", done, len(queries))
    return torch.cat(similarities), torch.cat(rows)


def _nearest_images(features: FeatureStore, split: Split, index: Tensor, classes: tuple[str, ...]) -> Predictions:
    """Each image's nearest neighbors among the others; no class is predicted.

    Args:
        features: of all splits.
        split: n images.
        index: (n,) of the images in the training split.
        classes: class names of the data set.
    """
    h = features.features(split)
    is_readable = _readable(features, split)
    h, index = h[is_readable], index[is_readable]
    count = len(h)
    num_neighbors = min(MAX_NEIGHBORS, count - 1)  # an image is not its own neighbor
    similarities, rows = _search(features, h, h, num_neighbors, torch.arange(count))
    no_label = torch.full((count,), -1)
    return Predictions(
        vote="",
        query_split="train",
        bank_split="train",
        classes=classes,
        index=index,
        labels=no_label,
        predicted=no_label,
        confidence=torch.zeros(count),
        neighbors=index[rows],
        similarities=similarities.float(),
        neighbor_labels=torch.full_like(rows, -1),
        features=h,
    )
