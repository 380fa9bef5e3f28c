"""The table that compares settings: means over seeds, differences to the best or first one; sorted by the headline metric."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from reptk.config.registry import nearest_hint
from reptk.core.errors import UsageError
from reptk.core.metric_names import is_share
from reptk.evaluate.verdict import RAW_PIXELS, UNTRAINED
from reptk.report.run_comparison import difference
from reptk.report.run_files import Run
from reptk.sweep.grid import run_label
from reptk.sweep.seed_statistics import (
    PAIRED_QUERIES,
    UNPAIRED_QUERIES,
    Estimate,
    difference_over_seeds,
    mean_over_seeds,
    without_interval,
)

Reference = Literal["best", "first"]

MAIN_METRICS = ("knn@1", "knn@20", "map@r")
"""Columns of the table next to the headline metric, if the runs have them."""

MAIN_FAMILIES = ("linear", "linear_stage", "accuracy", "top1")
"""Metrics of these families, such as `linear` or `accuracy@5`, are columns as well."""

_QUERY_KINDS = {"paired": PAIRED_QUERIES, "intervals": UNPAIRED_QUERIES}


Replicate = tuple[int, int]
"""What distinguishes runs of one setting: the seed of the run that each starts from, or `NO_START`, and its seed."""

NO_START = -1
"""No seed is negative."""


class SettingRun(NamedTuple):
    """A finished run of a setting.

    setting: its label, which may be empty if there is one setting alone.
    seed: of the run.
    run: what was read from its folder.
    start_seed: of the run that it starts from, where the seed alone does not distinguish the runs of its setting.
    """

    setting: str
    seed: int
    run: Run
    start_seed: int | None = None

    @property
    def replicate(self) -> Replicate:
        """What distinguishes the run from the others of its setting; runs of two settings that share it are a pair."""
        if self.start_seed is None:
            return NO_START, self.seed
        return self.start_seed, self.seed

    @property
    def seed_text(self) -> str:
        """The seed in tables, e.g. `0`, or `2:0` of a run with seed 0 that starts from one with seed 2."""
        if self.start_seed is None:
            return str(self.seed)
        return f"{self.start_seed}:{self.seed}"


class FailedRun(NamedTuple):
    """A run of a setting that has no result, and why."""

    setting: str
    seed: int
    reason: str

    @property
    def label(self) -> str:
        """What a message calls the run."""
        return run_label(self.setting, self.seed)


class SettingRow(NamedTuple):
    """A setting.

    runs: one per replicate, sorted by it; none if all of them have failed.
    metrics: of the evaluated encoder, by name.
    differences: to the reference's, by name of the metric; empty for the reference.
    seconds: mean training time of the runs; NaN if it is not known.
    failed: the runs without a result, which are in no number.
    """

    setting: str
    runs: list[SettingRun]
    metrics: dict[str, Estimate]
    differences: dict[str, Estimate]
    seconds: float
    failed: list[FailedRun]

    @property
    def seeds(self) -> list[int | str]:
        """The seeds of the runs, in ascending order; `seed_text` of runs that have a seed of their start."""
        seeds: list[int | str] = []
        for item in self.runs:
            if item.start_seed is None:
                seeds.append(item.seed)
            else:
                seeds.append(item.seed_text)
        return seeds

    def values(self, metric: str) -> dict[Replicate, float]:
        """Return a metric by replicate, of the runs that have it."""
        values = {}
        for item in self.runs:
            value = item.run.results.main_metrics.get(metric)
            if value is not None and math.isfinite(value):
                values[item.replicate] = value
        return values


class ComparisonTable(NamedTuple):
    """Settings, the best first; those without a result last.

    headline: the metric by which they are sorted.
    columns: the metrics of the short table, the headline first.
    metrics: all metrics.
    reference: the setting that the others are compared with; None if no run has the headline metric.
    baselines: metrics of the rows that all runs have in common and that no training has changed, such as raw pixels.
    """

    headline: str
    columns: list[str]
    metrics: list[str]
    rows: list[SettingRow]
    reference: str | None
    baselines: dict[str, dict[str, float]]

    @property
    def measured_rows(self) -> list[SettingRow]:
        """The settings that have a result."""
        return [row for row in self.rows if row.runs]

    @property
    def failed(self) -> list[FailedRun]:
        """All runs without a result."""
        failed = []
        for row in self.rows:
            failed += row.failed
        return failed

    @property
    def has_differences(self) -> bool:
        """Whether there is a setting to compare with another."""
        return self.reference is not None and len(self.measured_rows) > 1

    def leaves_out_seeds(self, row: SettingRow, metric: str) -> bool:
        """Return whether a row's difference is of shared seeds alone, and the two means are of others as well."""
        if row.setting == self.reference:
            return False
        seeds = row.values(metric).keys()
        reference_seeds = next(other for other in self.rows if other.setting == self.reference).values(metric).keys()
        return bool(seeds & reference_seeds) and seeds != reference_seeds


def build_table(
    runs: Sequence[SettingRun],
    *,
    metric: str | None = None,
    reference: Reference = "best",
    failed: Sequence[FailedRun] = (),
) -> ComparisonTable:
    """Return the table of runs.

    Args:
        runs: finished ones, at most one per setting and replicate. Of settings that are equally good, the first stays first.
        metric: to sort by; by default the headline metric that most runs have.
        reference: what the others are compared with: the best setting, or that of the first run.
        failed: runs without a result, which are counted and named.

    Raises:
        UsageError: no run, or none with this metric, or the first run's setting, which is to be the reference, lacks it.
    """
    if not runs:
        raise UsageError("there is no finished run to compare")
    metrics = _all_metrics(runs)
    headline = _headline(runs, metrics, metric)
    groups: dict[str, list[SettingRun]] = {}
    for item in runs:
        groups.setdefault(item.setting, []).append(item)
    failed_of: dict[str, list[FailedRun]] = {}
    for run in sorted(failed, key=lambda run: run.seed):
        failed_of.setdefault(run.setting, []).append(run)
    rows = []
    for setting, items in groups.items():
        items = sorted(items, key=lambda item: item.replicate)
        row = SettingRow(setting, items, {}, {}, _mean_seconds(items), failed_of.pop(setting, []))
        rows.append(row._replace(metrics=_estimates(row, metrics)))
    without_result = []
    for setting in dict.fromkeys(run.setting for run in failed):
        if setting in failed_of:
            without_result.append(SettingRow(setting, [], {}, {}, math.nan, failed_of[setting]))
    first = rows[0]
    # A sort keeps the order of equal items.
    rows = sorted(rows, key=lambda row: _sort_key(row, headline))
    compared_with = rows[0]
    if reference == "first":
        compared_with = first
        if headline and headline not in compared_with.metrics:
            raise UsageError(_reference_lacks(headline, compared_with))
    columns = _columns(headline, metrics)
    if headline not in compared_with.metrics:
        return ComparisonTable(headline, columns, metrics, [*rows, *without_result], None, _baselines(runs))
    compared = []
    for row in rows:
        differences = {}
        if row is not compared_with:
            differences = _differences(row, compared_with, metrics)
        compared.append(row._replace(differences=differences))
    compared += without_result
    return ComparisonTable(headline, columns, metrics, compared, compared_with.setting, _baselines(runs))


def _reference_lacks(headline: str, row: SettingRow) -> str:
    name = row.setting or row.runs[0].run.name
    known = ", ".join(row.metrics) or "none"
    return (
        f"--against first: the first setting, {name}, has no {headline}, by which the settings are sorted. Choose one of its "
        f"metrics with --metric ({known}), or --against best"
    )


def require_metric(metric: str, metrics: Sequence[str]) -> None:
    """Check that a metric is one of those that runs have.

    Raises:
        UsageError: it is not.
    """
    if metric not in metrics:
        raise UsageError(
            f"no run has the metric {metric!r}.{nearest_hint(metric, metrics)} They have {', '.join(metrics)}"
        )


def _all_metrics(runs: Sequence[SettingRun]) -> list[str]:
    """Return the metrics of all runs in the order of the results."""
    names: dict[str, None] = {}
    for item in runs:
        names |= dict.fromkeys(item.run.results.main_metrics)
    return list(names)


def _headline(runs: Sequence[SettingRun], metrics: Sequence[str], metric: str | None) -> str:
    if metric is not None:
        require_metric(metric, metrics)
        return metric
    counts: dict[str, int] = {}
    for item in runs:
        counts[item.run.results.headline] = counts.get(item.run.results.headline, 0) + 1
    candidate = max(counts, key=lambda name: counts[name])
    if candidate in metrics:
        return candidate
    # Old results do not name it.
    return next(iter(metrics), "")


def _columns(headline: str, metrics: Sequence[str]) -> list[str]:
    columns = [headline]
    for name in metrics:
        is_main = name in MAIN_METRICS or name.partition("@")[0] in MAIN_FAMILIES
        if is_main and name != headline and "," not in name:
            columns.append(name)
    return columns


def _sort_key(row: SettingRow, headline: str) -> tuple[bool, float]:
    estimate = row.metrics.get(headline)
    if estimate is None or math.isnan(estimate.mean):
        return True, 0.0
    return False, -estimate.mean


def _estimates(row: SettingRow, metrics: Sequence[str]) -> dict[str, Estimate]:
    estimates = {}
    for name in metrics:
        values = row.values(name)
        if not values:
            continue
        query_interval = None
        if len(values) == 1:
            with_value = next(item for item in row.runs if item.replicate in values)
            query_interval = with_value.run.results.main_intervals.get(name)
        estimates[name] = mean_over_seeds(list(values.values()), query_interval, is_share=is_share(name))
    return estimates


def _differences(row: SettingRow, reference: SettingRow, metrics: Sequence[str]) -> dict[str, Estimate]:
    differences = {}
    for name in metrics:
        a = row.values(name)
        b = reference.values(name)
        if not a or not b:
            continue
        estimate = difference_over_seeds(a, b, is_share=is_share(name))
        if estimate.count == 1 and not estimate.kind:
            estimate = _single_difference(row, reference, name, estimate)
        differences[name] = estimate
    return differences


def _single_difference(row: SettingRow, reference: SettingRow, metric: str, estimate: Estimate) -> Estimate:
    """Return the difference of two runs with its interval over queries.

    They are those of the only seed that both settings have, or the only ones of their settings.
    """
    a = row.values(metric)
    b = reference.values(metric)
    shared = a.keys() & b.keys()
    if shared:
        replicates = (min(shared), min(shared))
    elif len(a) == len(b) == 1:
        replicates = (min(a), min(b))
    else:
        return estimate
    run = next(item.run for item in row.runs if item.replicate == replicates[0])
    baseline = next(item.run for item in reference.runs if item.replicate == replicates[1])
    gap = difference(run, baseline, metric)
    if gap is None or not gap.method:
        return without_interval(estimate.mean, 1)
    return Estimate(gap.value, gap.low, gap.high, 1, _QUERY_KINDS[gap.method])


def _mean_seconds(items: Sequence[SettingRun]) -> float:
    seconds = []
    for item in items:
        value = item.run.results.protocol.get("train_seconds")
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            seconds.append(float(value))
    if not seconds:
        return math.nan
    return sum(seconds) / len(seconds)


def _baselines(runs: Sequence[SettingRun]) -> dict[str, dict[str, float]]:
    """Return the baselines that all runs have with the same values, such as raw pixels."""
    shared = {}
    for name in (RAW_PIXELS, UNTRAINED):
        first = runs[0].run.results.metrics.get(name)
        if first and all(item.run.results.metrics.get(name) == first for item in runs):
            shared[runs[0].run.results.label_of(name)] = first
    return shared
