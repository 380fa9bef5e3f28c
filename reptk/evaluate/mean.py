"""A number that is a mean over queries and knows what it is the mean of, so that it can say how far it is to be trusted."""

from collections.abc import Mapping

import torch
from torch import Tensor

from reptk.core import rng

DRAWS = 1000
LEVEL = 0.95
_AT_ONCE = 1 << 22

Interval = tuple[float, float]


class Mean(float):
    """The mean of one value per query; a float like any other.

    Args:
        values: (q,) one for each query with a label, in their order; NaN for a query that cannot be answered.
    """

    values: Tensor

    def __new__(cls, values: Tensor) -> "Mean":
        made = super().__new__(cls, values.double().nanmean())
        made.values = values.float()
        return made

    def interval(self) -> Interval:
        """95 % bootstrap interval: between which values the mean would lie, were other queries drawn."""
        return intervals({"": self})[""]

    def gain_over(self, other: "Mean") -> tuple[float, float, float]:
        """This minus `other`, which answers the same queries, and the 95 % interval of that difference.

        Raises:
            ValueError: the two are not of the same queries.
        """
        return gains({"": self}, {"": other})[""]


def intervals(numbers: Mapping[str, float]) -> dict[str, Interval]:
    """The interval of every `Mean` among the numbers; percentile bootstrap over queries (Efron 1979), 1,000 draws.

    A mean of values that are all 0 or all 1 gets the rule of three instead, since no draw would differ from it.
    """
    found = {name: value for name, value in numbers.items() if isinstance(value, Mean)}
    made: dict[str, Interval] = {}
    for count in {len(value.values) for value in found.values()}:
        group = {name: value for name, value in found.items() if len(value.values) == count}
        drawn = _drawn(torch.stack([value.values for value in group.values()], dim=1))
        for (name, value), ends in zip(group.items(), _ends(drawn), strict=True):
            made[name] = _ruled(value, *ends)
    return {name: made[name] for name in found}


def gains(numbers: Mapping[str, float], others: Mapping[str, float]) -> dict[str, tuple[float, float, float]]:
    """What `numbers` have over `others`, name by name: difference, low, high, by the same draws of queries for both."""
    names = [name for name, value in numbers.items() if isinstance(value, Mean) and isinstance(others.get(name), Mean)]
    made = {}
    for name in names:
        mine, theirs = numbers[name].values, others[name].values
        if mine.shape != theirs.shape:
            raise ValueError(f"{name}: {len(mine)} queries here, {len(theirs)} there; a gain is of the same queries")
    for count in {len(numbers[name].values) for name in names}:
        group = [name for name in names if len(numbers[name].values) == count]
        apart = torch.stack([numbers[name].values - others[name].values for name in group], dim=1)
        for name, ends in zip(group, _ends(_drawn(apart)), strict=True):
            made[name] = (float(numbers[name]) - float(others[name]), *ends)
    return {name: made[name] for name in names}


def _drawn(values: Tensor) -> Tensor:
    """Means of (q, m) values over `DRAWS` draws of q queries with replacement: (DRAWS, m). The same draws for the same q."""
    count, draw = len(values), rng.generator("bootstrap", len(values))
    present = ~values.isnan()
    columns = torch.cat([values.nan_to_num().double(), present.double()], dim=1)
    sums = []
    for first in range(0, DRAWS, step := max(1, _AT_ONCE // count)):
        rows = min(step, DRAWS - first)
        chosen = torch.randint(count, (rows, count), generator=draw)
        times = torch.zeros(rows, count, dtype=torch.float64).scatter_add_(
            1, chosen, torch.ones(1).double().expand_as(chosen)
        )
        sums.append(times @ columns)
    total, answered = torch.cat(sums).chunk(2, dim=1)
    return total / answered


def _ends(drawn: Tensor) -> list[Interval]:
    tails = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=drawn.dtype)
    low, high = drawn.nanquantile(tails, dim=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))


def _ruled(value: Mean, low: float, high: float) -> Interval:
    answered = int((~value.values.isnan()).sum())
    if low < high or float(value) not in (0.0, 1.0) or not answered:
        return low, high
    room = min(1.0, 3 / answered)
    return (0.0, room) if value == 0 else (1 - room, 1.0)
