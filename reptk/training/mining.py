"""Hard negatives: the nearest training images with another label, by the encoder at the end of an epoch."""

import torch
from torch import Tensor

from reptk.core import distributed
from reptk.data import Data
from reptk.data.batches.hard_negatives import NO_NEIGHBOR, HardNegatives
from reptk.evaluate import EvalResult, Evaluator, FeatureStore
from reptk.neighbors import search_sharded

NEIGHBORS_SEARCHED = 64
"""An image whose neighbors up to this number all have its label is already separated from the other classes: it has no hard
negative."""


class HardNegativeMiner(Evaluator):
    """Searches the training images with those of all ranks, and gives the sampler what it finds.

    It is run as an evaluator is, so that it shares features with those that also search the training images. It measures
    nothing.

    Args:
        target: of the sampler.
        device: of collectives.
    """

    needs_labels = False

    def __init__(self, target: HardNegatives, device: torch.device) -> None:
        self.target = target
        self.device = device

    def __call__(self, features: FeatureStore, data: Data) -> EvalResult:
        labels = data.train.labels
        local, first = features.local_part(data.train)
        k = min(NEIGHBORS_SEARCHED, len(labels) - 1)
        queries = torch.arange(first, first + len(local))
        neighbors = [torch.empty(0, self.target.per_image, dtype=torch.int32)]
        num_done = 0
        for _, rows in search_sharded(local, local, k, queries):
            query_labels = labels[queries[num_done : num_done + len(rows)]]
            neighbors.append(nearest_of_other_labels(rows, labels, query_labels, self.target.per_image))
            num_done += len(rows)
            features.report_progress("searching", num_done, len(local))
        all_neighbors = distributed.all_gather_uneven(torch.cat(neighbors).to(self.device))
        self.target.set(all_neighbors.cpu())
        return EvalResult({})


def nearest_of_other_labels(rows: Tensor, labels: Tensor, query_labels: Tensor, count: int) -> Tensor:
    """Return the nearest neighbors with another label (q, count) int32, then `NO_NEIGHBOR`.

    Args:
        rows: (q, k) neighbors, the nearest first.
        labels: (n,) of all images, -1 for none.
        query_labels: (q,); a query without a label has no such neighbor.
        count: how many to return.
    """
    is_other = (labels[rows] != query_labels[:, None]) & (labels[rows] >= 0) & (query_labels >= 0)[:, None]
    # Stable: the nearest remain first.
    order = (~is_other).to(torch.uint8).argsort(dim=1, stable=True)[:, :count]
    nearest = torch.where(is_other, rows, NO_NEIGHBOR).gather(1, order)
    missing = count - nearest.shape[1]
    return torch.nn.functional.pad(nearest, (0, missing), value=NO_NEIGHBOR).to(torch.int32)
