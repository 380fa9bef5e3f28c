"""A recipe's recorded result, `[expect]`, against the numbers of a run.

A number agrees if it differs from the recorded one by at most a tolerance. Its 95 % interval over queries decides nothing: a
run on another machine, or with other versions, has the same queries.
"""

from collections.abc import Sequence
from typing import NamedTuple

from reptk.config import Expect, Recipe, read
from reptk.config.dotted_keys import is_among
from reptk.config.load import find
from reptk.config.schema import EXECUTION_KEYS
from reptk.core.errors import UsageError
from reptk.evaluate.verdict import RAW_PIXELS, UNTRAINED
from reptk.report.run_files import SavedResults

TOLERANCE = 0.03
"""Of the trained encoder's number, unless the recipe records another (`expect.tolerance`).

Rounding errors of other hardware are amplified by training, and change the number by no more than another seed does. Of the
pairs of seeds in docs/comparison.md, 93 % differ by at most 3 points in kNN@20."""

BASELINE_TOLERANCE = 0.005
"""Of the numbers of baselines, which nothing has trained: rounding errors change the votes of few queries."""

ROUNDING = 5e-5
"""Recorded numbers have four decimals."""

METRIC_FAMILIES = {
    "knn": ("knn", "knn_majority", "recall", "precision", "mrr", "map", "r_precision"),
    "linear": ("linear",),
    "linear_stage": ("linear_stage",),
    "few_shot": ("few_shot", "few_shot_std"),
    "view_retrieval": ("view_recall",),
    "accuracy": ("accuracy",),
}
"""Names of the metrics of each evaluator, without `@k`."""

ADDED_EVALUATORS = ("accuracy", "view_retrieval")
"""Evaluators that a run may have although its recipe does not name them: it has a classifier, or data without labels."""

ALLOWED_KEYS = (*EXECUTION_KEYS, "data.root", "data.download", "data.jpeg")
"""Keys, or tables of keys, that say where and how a run is executed; with any other the recorded result does not hold."""


class Agreement(NamedTuple):
    """One number of a run and the recorded one.

    row: of results.json: the trained encoder's, which is the last one, or a baseline's.
    low, high: of its 95 % interval; equal to the value without one.
    """

    row: str
    expected: float
    value: float
    low: float
    high: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether the two numbers agree."""
        return abs(self.value - self.expected) <= self.tolerance + ROUNDING


def recorded_result(name_or_path: str, overrides: Sequence[str], recipe: Recipe) -> Expect:
    """Return the recorded result of a recipe.

    Args:
        name_or_path: as for `reptk.config.load`.
        overrides: with which the recipe was loaded.
        recipe: the loaded recipe, which has no recorded result if there are overrides.

    Raises:
        UsageError: there is none, it is of another number of epochs, or an override changes what is trained.
    """
    for pair in overrides:
        key = pair.partition("=")[0]
        if not is_among(key, ALLOWED_KEYS):
            raise UsageError(
                f"{pair}: the recorded result is that of the recipe as it is. What can be set here says where and how it runs, "
                "e.g. train.device, train.workers or data.root"
            )
    expect = recipe.expect
    if overrides and "expect" in read(find(name_or_path)):
        expect = Expect.model_validate(read(find(name_or_path))["expect"])
    if expect is None:
        raise UsageError(
            f"{name_or_path} records no result to compare with: it has no [expect] table. Train it: "
            f"python -m reptk.recipe {name_or_path}"
        )
    if expect.epochs != recipe.train.epochs:
        raise UsageError(
            f"{name_or_path} records the result of {expect.epochs} epochs, and trains for {recipe.train.epochs}: expect.epochs "
            "and train.epochs must be the same"
        )
    return expect


def check_metric(expect: Expect, recipe: Recipe) -> None:
    """Check, before anything is trained, that the recipe's evaluators compute the metric of its recorded result.

    What evaluators of plugins compute is known only when they have run, so recipes that have one are not checked.

    Raises:
        UsageError: they do not.
    """
    evaluators = [table["name"] for table in recipe.eval.values()] or ["knn"]
    if not all(name in METRIC_FAMILIES for name in evaluators):
        return
    families = []
    for name in (*evaluators, *ADDED_EVALUATORS):
        families += METRIC_FAMILIES[name]
    family, _, k = expect.metric.partition("@")
    if family not in families:
        tables = ", ".join(f"[eval.{name}]" for name in evaluators)
        advice = f"its evaluators are {tables}. Add the one that computes it"
    elif _is_beyond_largest_k(family, k, recipe):
        advice = f"eval.knn.k has no {k}. Add it"
    else:
        return
    raise UsageError(
        f"expect.metric is {expect.metric}, which a run of {recipe.name} would not have: {advice}, or record another metric"
    )


def _is_beyond_largest_k(family: str, k: str, recipe: Recipe) -> bool:
    """Return whether a vote is of more neighbors than any that the recipe names; a k above the gallery's size is lowered."""
    tables = [table for table in recipe.eval.values() if table["name"] == "knn"]
    if family not in ("knn", "knn_majority") or not k.isdecimal() or not tables:
        return False
    largest = max(max(table["k"]) for table in tables)
    return int(k) > largest


def compare_with_recorded(expect: Expect, results: SavedResults, *, tolerance: float = TOLERANCE) -> list[Agreement]:
    """Return every recorded number next to that of the run; the trained encoder's first.

    Args:
        expect: the recorded result.
        results: of a run; its main row is that of the trained encoder.
        tolerance: difference up to which the number of the trained encoder agrees; baselines have `BASELINE_TOLERANCE`.

    Raises:
        UsageError: the run lacks the metric.
    """
    main_row = results.main_row
    metrics = results.metrics
    recorded = {main_row: expect.value, UNTRAINED: expect.untrained, RAW_PIXELS: expect.pixels}
    agreements = []
    for row, expected in recorded.items():
        # A run without baselines has the main row alone.
        is_missing_baseline = row != main_row and row not in metrics
        if expected is None or is_missing_baseline:
            continue
        value = metrics.get(row, {}).get(expect.metric)
        if value is None:
            known = ", ".join(metrics.get(row, {})) or "none"
            raise UsageError(f"the recorded result is of {expect.metric}, which the run lacks; it has {known}")
        low, high = results.intervals.get(row, {}).get(expect.metric, (value, value))
        row_tolerance = tolerance
        if row != main_row:
            row_tolerance = BASELINE_TOLERANCE
        agreements.append(Agreement(row, expected, value, low, high, row_tolerance))
    return agreements
