"""Metrics as they are written for people."""

import pytest

from reptk.core.metric_names import display_name


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        ("knn@1", "kNN@1"),
        ("knn@10", "kNN@10"),
        ("knn@20", "kNN@20"),
        ("knn@100", "kNN@100"),
        ("knn@200", "kNN@200"),
        ("knn_majority@20", "majority@20"),
        ("recall@1", "Recall@1"),
        ("recall@5", "Recall@5"),
        ("recall@10", "Recall@10"),
        ("precision@5", "Precision@5"),
        ("view_recall@1", "View recall@1"),
        ("map@r", "mAP@R"),
        ("mrr", "MRR"),
        ("r_precision", "R-prec."),
        ("linear", "Linear"),
        ("linear_stage", "Linear stage"),
        ("few_shot@5", "Few-shot@5"),
        ("few_shot_std@5", "Few-shot std@5"),
    ],
)
def test_metric_has_a_display_name(metric, name):
    assert display_name(metric) == name


@pytest.mark.parametrize("metric", ["margin", "margin@5", "", "my_metric@r"])
def test_metric_of_a_plugin_is_written_as_it_is(metric):
    assert display_name(metric) == metric
