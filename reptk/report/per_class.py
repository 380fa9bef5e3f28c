"""Metrics by class and confusions of classes: as results.json has them, else counted from the predictions."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from reptk.evaluate.predictions import Predictions
from reptk.report.formatting import class_name
from reptk.report.run_files import Run

MAX_CONFUSIONS = 12
PREFERRED_METRICS = ("recall@1", "r_precision", "linear")
"""The metrics of a class that are shown after the headline."""
NO_METRICS = ("name", "bank", "queries", "label")
"""Keys of a class in results.json that are not metrics."""


class ClassMetrics(NamedTuple):
    """The names of the metrics to show, and a table for each class with its name, counts and metrics."""

    metrics: list[str]
    classes: list[dict[str, Any]]


class ConfusedPair(NamedTuple):
    """`count` of the `of` queries of a class were predicted as another class."""

    name: str
    predicted: str
    count: int
    of: int


def class_metrics(run: Run) -> ClassMetrics:
    """Return the metrics of each class that has queries; empty if there are no labels."""
    if run.results.classes:
        return _saved_class_metrics(run)
    if run.predictions is None or not run.predictions.vote or not bool((run.predictions.labels >= 0).any()):
        return ClassMetrics([], [])
    return _counted_class_metrics(run.predictions)


def confusions(run: Run) -> list[ConfusedPair]:
    """Return the most frequent confusions, most frequent first; empty if there are no labels."""
    pairs = []
    for saved in run.results.confusions[:MAX_CONFUSIONS]:
        fields = saved.model_extra or {}
        pairs.append(ConfusedPair(str(fields.get("class", "?")), saved.taken_for, saved.count, saved.of))
    if not pairs and run.predictions is not None and run.predictions.vote:
        pairs = _counted_confusions(run.predictions)
    return pairs


def confusion_matrix(predictions: Predictions) -> Tensor:
    """Return (C, C) how many labeled queries of a class (row) were predicted as each class (column)."""
    # A query without a label belongs to no row, one without a vote to no column.
    has_both = (predictions.labels >= 0) & (predictions.predicted >= 0)
    labels = predictions.labels[has_both]
    predicted = predictions.predicted[has_both]
    num_classes = len(predictions.classes)
    if len(labels):
        num_classes = max(num_classes, int(labels.max()) + 1, int(predicted.max()) + 1)
    num_classes = max(num_classes, 1)
    # One number for each pair of classes, so that a single count serves them all.
    counts = torch.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return counts.view(num_classes, num_classes)


def _saved_class_metrics(run: Run) -> ClassMetrics:
    classes = run.results.classes
    measured: dict[str, None] = {}  # a dict retains the order of the results
    for table in classes:
        for key in table:
            if key not in NO_METRICS:
                measured[key] = None
    preferred = dict.fromkeys((run.results.headline, *PREFERRED_METRICS))
    shown = [metric for metric in preferred if metric in measured]
    if not shown:
        shown = list(measured)[: len(PREFERRED_METRICS)]
    return ClassMetrics(shown, classes)


def _counted_class_metrics(predictions: Predictions) -> ClassMetrics:
    is_labeled = predictions.labels >= 0
    labels = predictions.labels[is_labeled]
    num_classes = int(labels.max()) + 1
    hits = {
        predictions.vote: predictions.predicted[is_labeled] == labels,
        "recall@1": predictions.neighbor_labels[is_labeled][:, 0] == labels,
    }
    num_queries = torch.bincount(labels, minlength=num_classes)
    num_correct = {}
    for metric, is_hit in hits.items():
        num_correct[metric] = torch.bincount(labels[is_hit], minlength=num_classes)
    classes = []
    for label in num_queries.nonzero().flatten().tolist():
        queries = int(num_queries[label])
        table = {"name": class_name(predictions.classes, label), "queries": queries}
        for metric, correct in num_correct.items():
            table[metric] = int(correct[label]) / queries
        classes.append(table)
    return ClassMetrics(list(hits), classes)


def _counted_confusions(predictions: Predictions) -> list[ConfusedPair]:
    has_both = (predictions.labels >= 0) & (predictions.predicted >= 0)
    num_queries = torch.bincount(predictions.labels[has_both])
    is_error = has_both & (predictions.labels != predictions.predicted)
    errors = torch.stack([predictions.labels[is_error], predictions.predicted[is_error]], dim=1)
    # Not a matrix of all classes, which would be large for many classes. The pairs are sorted.
    cells, counts = torch.unique(errors, dim=0, return_counts=True)
    pairs = []
    # Stable, so that equally frequent confusions are in the same order on every machine.
    for number in counts.argsort(descending=True, stable=True)[:MAX_CONFUSIONS].tolist():
        label, predicted = cells[number].tolist()
        pair = ConfusedPair(
            name=class_name(predictions.classes, label),
            predicted=class_name(predictions.classes, predicted),
            count=int(counts[number]),
            of=int(num_queries[label]),
        )
        pairs.append(pair)
    return pairs
