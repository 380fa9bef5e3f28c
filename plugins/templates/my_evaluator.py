"""The evaluator my_evaluator: is an image of the query's class among its nearest neighbors?

Source, if the metric is published.
"""

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from reptk import EVALUATORS, EvalResult
from reptk.data import Data
from reptk.evaluate import FeatureStore, QueryMean, search


@EVALUATORS.register("my_evaluator")
class MyEvaluator:
    """hit@k: the share of queries with an image of their class among the k nearest of the bank.

    Required is the call. Optional are the members of `reptk.evaluate.Evaluator`: `needs_labels = False` for one that works
    without labels, bank and query, and `during_training(features, data)`, which may measure less than the call.

    Args:
        k: neighbors that are looked at. These are what the recipe's [eval.my_evaluator] table may set; names, types, ranges
            and defaults are those of this signature.
    """

    def __init__(self, k: Annotated[int, Ge(1)] = 5) -> None:
        self.k = k

    def __call__(self, features: FeatureStore, data: Data) -> EvalResult:
        """Return the metrics. The same features and data give the same ones, and nothing of the input is changed.

        Args:
            features: `features.features(split)` are rows (n, D) of unit length, float32 on the CPU, computed once for
                all evaluators; `features.raw(split)` are those before they were scaled.
            data: `data.bank` and `data.query` with their `labels` (n,), -1 for none, and `data.classes`, the names. If both
                are the same object, a query must not be its own neighbor.

        Returns:
            Metrics by name. A `QueryMean` of one value for each labeled query gets an interval, a gain over the baselines
            and a column in the table of classes; a plain float is only reported. `notes` say how it
            was measured.
        """
        queries, bank = features.features(data.query), features.features(data.bank)
        exclude = None
        if data.query is data.bank:  # leave one out
            exclude = torch.arange(len(queries))
        neighbors = torch.cat(
            [rows for _, rows in search(bank, queries, self.k, exclude)]
        )  # (n, k) numbers in the bank
        has_label = data.query.labels >= 0
        is_hit = hits(data.bank.labels[neighbors.cpu()], data.query.labels)
        return EvalResult({f"hit@{self.k}": QueryMean(is_hit[has_label])}, notes={"my_evaluator": {"k": self.k}})


def hits(neighbor_labels: Tensor, labels: Tensor) -> Tensor:
    """Return 1 for each query whose label is among those of its neighbors, (n, k), else 0: (n,) float32."""
    return (neighbor_labels == labels[:, None]).any(dim=1).float()
