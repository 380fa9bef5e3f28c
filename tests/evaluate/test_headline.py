"""The metric that stands for a run."""

from itertools import permutations

import pytest

from reptk.config.part_tables import headline_evaluator
from reptk.core.errors import UsageError
from reptk.evaluate.results import headline


def test_headline_is_knn_with_k_nearest_to_20_or_the_first_metric() -> None:
    assert headline({"knn@1": 0.1, "knn@20": 0.2}) == "knn@20"
    assert headline({"view_recall@1": 0.1}) == "view_recall@1"


def test_results_without_any_metric_are_a_mistake_of_the_recipe() -> None:
    with pytest.raises(UsageError, match="no evaluator returned a metric"):
        headline({})


METRIC_OF = {"knn": "knn@20", "linear": "linear", "accuracy": "accuracy", "few_shot": "few_shot@1"}


@pytest.mark.parametrize("names", list(permutations(METRIC_OF, 3)), ids=str)
def test_a_recipe_and_its_metrics_have_one_headline(names: tuple[str, ...]) -> None:
    """Early stopping asks the recipe's tables which evaluator decides, and the results ask the metrics."""
    tables = {name: {"name": name} for name in names}
    metrics = {METRIC_OF[name]: 0.5 for name in names}
    assert headline(metrics) == METRIC_OF[headline_evaluator(tables)]
