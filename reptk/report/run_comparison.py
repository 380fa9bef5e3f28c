"""Whether one run is better than another, or whether the draw of the queries explains the difference."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reptk.config.part_tables import common_options
from reptk.config.registry import DATASETS
from reptk.core.files import expand_home, real_path
from reptk.data.decoding.resize import Preprocessing
from reptk.data.fingerprint import read_fingerprint, show_same_files
from reptk.evaluate.intervals import QueryMean
from reptk.evaluate.predictions import Predictions
from reptk.report.run_files import Run

ACCESS_ARGUMENTS = ("cache", "download", "jpeg", "on_error", *Preprocessing._fields)
"""Arguments of a data set that change how its images are read, not which images they are."""

ROOT = "root"
"""The argument of a data set that says where its files are, not which they are."""

Bounds = tuple[float, float]


@dataclass(frozen=True)
class Difference:
    """The difference of two runs in one metric, the run minus the baseline.

    Args:
        value: the difference.
        low, high: its 95 % interval; NaN if none can be computed.
        method: how the interval was computed: "paired", "intervals", or "" for none.
    """

    value: float
    low: float
    high: float
    method: str

    @property
    def is_significant(self) -> bool:
        """The interval does not contain 0."""
        return self.low > 0 or self.high < 0


def difference(run: Run, baseline: Run, metric: str) -> Difference | None:
    """Return how much `run` is above `baseline` in `metric`; None if one of them lacks it.

    The interval is computed from pairs if the predictions of both show which of the same queries were correct, else from
    the two intervals as for independent samples.
    """
    a = run.results.main_metrics.get(metric)
    b = baseline.results.main_metrics.get(metric)
    if a is None or b is None:
        return None
    # Pairs give a much smaller interval: what is hard for one run is hard for the other.
    if have_same_queries(run, baseline):
        run_hits = _hits(run.predictions, metric)
        baseline_hits = _hits(baseline.predictions, metric)
        if run_hits is not None and baseline_hits is not None:
            _, low, high = QueryMean(run_hits.float()).gain_over(QueryMean(baseline_hits.float()))
            return Difference(a - b, low, high, "paired")
    return independent_difference(
        a, run.results.main_intervals.get(metric), b, baseline.results.main_intervals.get(metric)
    )


def independent_difference(a: float, a_bounds: Bounds | None, b: float, b_bounds: Bounds | None) -> Difference:
    """Return a - b of two independent samples.

    The errors of independent samples add in quadrature: the lower half of a's interval with the upper half of b's, and
    the other way round.
    """
    if a_bounds is None or b_bounds is None:
        return Difference(a - b, math.nan, math.nan, "")
    a_low, a_high = a_bounds
    b_low, b_high = b_bounds
    below = math.hypot(a - a_low, b_high - b)
    above = math.hypot(a_high - a, b - b_low)
    return Difference(a - b, a - b - below, a - b + above, "intervals")


def have_same_queries(run: Run, baseline: Run) -> bool:
    """Return whether both have predictions for the same labeled queries of the same data set."""
    a = run.predictions
    b = baseline.predictions
    if a is None or b is None:
        return False
    if not have_same_data(run, baseline) or a.query_split != b.query_split:
        return False
    # Of many queries a sample is saved, which differs if their number does.
    same_images = torch.equal(a.index, b.index) and torch.equal(a.labels, b.labels)
    return same_images and bool((a.labels >= 0).any())


def have_same_data(run: Run, other: Run) -> bool:
    """Return whether both were evaluated on the same data set, wherever its files were."""
    a, b = data_identity(run.data_part), data_identity(other.data_part)
    for part in (a, b):
        part.pop(ROOT, None)
    return a == b and have_same_root(run, other)


def have_same_root(run: Run, other: Run) -> bool:
    """Return whether the data of both are the same files: one folder, or two whose fingerprints agree."""
    a, b = run.data_part.get(ROOT), other.data_part.get(ROOT)
    if a == b:
        return True
    if not isinstance(a, str) or not isinstance(b, str):
        return False
    try:
        if real_path(expand_home(a)) == real_path(expand_home(b)):
            return True
    except ValueError:  # no paths, e.g. since a null character is in them
        return False
    before, now = read_fingerprint(run.folder), read_fingerprint(other.folder)
    return before is not None and now is not None and show_same_files(before, now)


def data_identity(data_part: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a data set that decide which images it has."""
    ignored = set(ACCESS_ARGUMENTS)
    if data_part.get("name") in DATASETS.names():
        # Labels of training images; bank and queries keep all of theirs.
        ignored |= common_options(data_part).keys()
    # Image files are decoded at the size that an encoder needs.
    if "interpolation" in data_part:
        ignored.add("size")
    return {key: value for key, value in data_part.items() if key not in ignored}


def _hits(predictions: Predictions, metric: str) -> Tensor | None:
    """Return which labeled queries count as correct for `metric`, (labeled,) bool; None if it cannot be told."""
    is_labeled = predictions.labels >= 0
    if metric and metric == predictions.vote:
        return (predictions.predicted == predictions.labels)[is_labeled]
    family, _, k = metric.partition("@")
    if metric in ("knn@1", "knn_majority@1"):
        family = "recall"  # a single vote is that of the nearest neighbor
    num_neighbors = predictions.neighbors.shape[1]
    if family == "recall" and k.isdigit() and 1 <= int(k) <= num_neighbors:
        nearest_labels = predictions.neighbor_labels[:, : int(k)]
        return (nearest_labels == predictions.labels[:, None]).any(1)[is_labeled]
    return None
