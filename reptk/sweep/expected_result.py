"""A recipe's recorded result, `[expect]`, against the numbers of a run.

A number agrees if its 95 % interval over queries contains the recorded one, or if the two differ by at most a tolerance. The
interval says how much other queries would change the number. A run on another machine, or with other versions, has the same
queries, and differs by rounding errors that training has amplified, mostly by less.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from reptk.config import Expect, Recipe, read
from reptk.config.dotted_keys import is_among
from reptk.config.load import find
from reptk.config.schema import EXECUTION_KEYS
from reptk.core.errors import UsageError
from reptk.evaluate.verdict import RAW_PIXELS, UNTRAINED

TOLERANCE = 0.005
"""Half a percentage point."""

ALLOWED_KEYS = (*EXECUTION_KEYS, "data.root", "data.download", "data.jpeg")
"""Keys, or tables of keys, that say where and how a run is executed; with any other the recorded result does not hold."""

Bounds = tuple[float, float]


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
        is_near = abs(self.value - self.expected) <= self.tolerance
        return is_near or self.low <= self.expected <= self.high


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


def compare_with_recorded(
    expect: Expect,
    metrics: Mapping[str, Mapping[str, float]],
    intervals: Mapping[str, Mapping[str, Bounds]],
    tolerance: float = TOLERANCE,
) -> list[Agreement]:
    """Return every recorded number next to that of the run; the trained encoder's first.

    Args:
        expect: the recorded result.
        metrics, intervals: of a run by row and metric, as in results.json; the last row is that of the trained encoder.
        tolerance: difference up to which two numbers agree in any case.

    Raises:
        UsageError: the run lacks the metric.
    """
    main_row = next(reversed(metrics), "")
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
        low, high = intervals.get(row, {}).get(expect.metric, (value, value))
        agreements.append(Agreement(row, expected, value, low, high, tolerance))
    return agreements
