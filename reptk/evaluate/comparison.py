"""The last row of the results against a baseline: on which side each family of metrics is, beyond chance."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from reptk.evaluate.metrics.knn import headline_k

Side = Literal["better", "worse", "even"]


class MetricDifference(NamedTuple):
    """A metric that differs from a baseline's beyond the paired interval."""

    metric: str
    side: Side
    before: float
    after: float


class Comparison(NamedTuple):
    """The last row against one baseline.

    side: of the headline metric; None if it has no interval.
    differences: of the other families that differ beyond chance.
    """

    row: str
    side: Side | None
    differences: list[MetricDifference]

    @property
    def is_worse(self) -> bool:
        """The headline is worse; or it is no better, and another family is worse while none is better."""
        if self.side == "worse":
            return True
        sides = {difference.side for difference in self.differences}
        return self.side != "better" and sides == {"worse"}

    @property
    def is_better(self) -> bool:
        """The headline is better, or has no baseline while a family is better; and no family is worse."""
        is_risen = self.side == "better" or (self.side is None and bool(self.differences))
        return is_risen and all(difference.side == "better" for difference in self.differences)

    @property
    def is_mixed(self) -> bool:
        """One family is better and another one is worse."""
        sides = {self.side, *(difference.side for difference in self.differences)}
        return {"better", "worse"} <= sides


def compare(results: Mapping[str, Any], row: str) -> Comparison:
    """Compare the last row with a baseline in the headline and in one metric of every other family."""
    last = list(results["metrics"])[-1]
    gains = results["gains"].get(row, {})
    headline = results["headline"]
    side = None
    if headline in gains:
        side = side_of(gains[headline])
    differences = []
    for metric in family_metrics(gains, headline):
        metric_side = side_of(gains[metric])
        if metric_side != "even":
            before = results["metrics"][row][metric]
            after = results["metrics"][last][metric]
            differences.append(MetricDifference(metric, metric_side, before, after))
    return Comparison(row, side, differences)


def family_metrics(metrics: Iterable[str], headline: str) -> list[str]:
    """Return one metric of every family, apart from the headline: the usual one, or that of the fewest labels."""
    names = list(metrics)
    few_shot = [name for name in names if name.startswith("few_shot@")]
    knn = []
    if not headline.startswith("knn@"):
        knn = knn_metric(names)
    usual = [*knn, "recall@1", "map@r", "linear", "linear_stage", *few_shot[:1], "view_recall@1"]
    return [name for name in usual if name in names and name != headline]


def knn_metric(names: Iterable[str]) -> list[str]:
    """Return the weighted kNN with k nearest to 20, as a list of at most one name."""
    # `knn@20,t=0.2`, the vote at a further temperature, is no candidate.
    ks = []
    for name in names:
        vote, _, k = name.partition("@")
        if vote == "knn" and k.isdigit():
            ks.append(int(k))
    if not ks:
        return []
    return [f"knn@{headline_k(ks)}"]


def side_of(gain: tuple[float, float, float]) -> Side:
    """On which side of 0 the interval of a gain is."""
    _, low, high = gain
    if low > 0:
        return "better"
    if high < 0:
        return "worse"
    return "even"
