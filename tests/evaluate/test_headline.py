"""The metric that stands for a run."""

import pytest

from reptk.core.errors import UsageError
from reptk.evaluate.results import headline


def test_headline_is_knn_with_k_nearest_to_20_or_the_first_metric() -> None:
    assert headline({"knn@1": 0.1, "knn@20": 0.2}) == "knn@20"
    assert headline({"view_recall@1": 0.1}) == "view_recall@1"


def test_results_without_any_metric_are_a_mistake_of_the_recipe() -> None:
    with pytest.raises(UsageError, match="no evaluator returned a metric"):
        headline({})
