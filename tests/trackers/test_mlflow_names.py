"""Names of metrics as MLflow allows them."""

import pytest

from reptk.trackers.mlflow import allowed_name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("loss", "loss"),
        ("knn@20", "knn_at_20"),
        ("knn@20,t=0.2", "knn_at_20_t_0.2"),
        ("results/raw pixels/map@r", "results/raw pixels/map_at_r"),
    ],
)
def test_names_that_mlflow_forbids_are_replaced(name: str, expected: str) -> None:
    assert allowed_name(name) == expected
