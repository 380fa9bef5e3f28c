"""Columns: predictions by the nearest neighbors, folders, and what Parquet files hold besides."""

from pathlib import Path

import numpy as np
import pytest
import torch

import reptk
from embedding_inputs import needs_pyarrow, unit_vectors
from reptk.explore.columns import ColorColumn, embedding_columns, errors, parquet_columns, text_column

pytestmark = [pytest.mark.usefixtures("one_thread")]


def by_name(columns: list[ColorColumn]) -> dict[str, ColorColumn]:
    return {column.name: column for column in columns}


def test_predictions_are_votes_of_the_nearest_images() -> None:
    vectors = unit_vectors(40)
    labels = torch.arange(40) % 4 - 1
    columns = by_name(embedding_columns(reptk.Embeddings(vectors, [str(n) for n in range(40)], labels=labels)))
    similarities = vectors @ vectors.T
    similarities.fill_diagonal_(-2)
    expected = []
    for row in range(40):
        values, rows = similarities[row].topk(10)
        weights = torch.zeros(3)
        for value, neighbor in zip(values, rows, strict=True):
            if labels[neighbor] >= 0:
                weights[labels[neighbor]] += torch.exp((value - values[0]) / 0.07)
        expected.append(int(weights.argmax()))
    assert columns["prediction"].values.tolist() == expected
    assert columns["error"].values.tolist() == errors(labels.numpy(), np.array(expected)).tolist()
    assert (columns["error"].values[labels.numpy() < 0] == -1).all()
    nearest = columns["similarity to the nearest"]
    assert nearest.values == pytest.approx(similarities.amax(1).numpy(), abs=1e-5)
    assert columns["class"].text(0) == ""
    assert columns["class"].text(2) == "class 1"


def test_images_without_classes_and_single_images_have_fewer_columns() -> None:
    unlabeled = reptk.Embeddings(unit_vectors(5), list("abcde"))
    assert list(by_name(embedding_columns(unlabeled))) == ["similarity to the nearest"]
    single = reptk.Embeddings(unit_vectors(1), ["a"], labels=torch.tensor([0]))
    assert list(by_name(embedding_columns(single))) == ["class"]


def test_folders_are_a_column_unless_they_are_the_classes() -> None:
    paths = ["a/1.png", "a/2.png", "b/c/3.png"]
    columns = by_name(embedding_columns(reptk.Embeddings(unit_vectors(3), paths, paths)))
    assert columns["folder"].categories == ["a", "b/c"]
    assert columns["folder"].values.tolist() == [0, 0, 1]
    paths = ["x/1.png", "y/2.png"]
    labeled = reptk.Embeddings(unit_vectors(2), paths, paths, torch.tensor([0, 1]), ("x", "y"))
    assert "folder" not in by_name(embedding_columns(labeled))


def test_texts_that_are_names_are_no_column() -> None:
    assert text_column("x", [str(number) for number in range(2000)]) == []
    assert text_column("x", ["a", "a"]) == []
    [column] = text_column("x", ["b", None, "a", "b", ""])
    assert (column.categories, column.values.tolist()) == (["b", "a"], [0, -1, 1, 0, -1])


@needs_pyarrow
def test_columns_and_positions_of_a_parquet_file(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    vectors = unit_vectors(3)
    table = pyarrow.table(
        {
            "id": ["a", "b", "c"],
            "vector": vectors.tolist(),
            "camera": ["x", None, "y"],
            "score": pyarrow.array([1.5, None, 2.0]),
            "is_sharp": [True, False, None],
            "tags": [["u"], [], None],
            "projection_x": [0.0, 1.0, 2.0],
            "projection_y": [5.0, 6.0, 7.0],
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "e.parquet")
    columns, positions = parquet_columns(tmp_path / "e.parquet")
    values = {column.name: column.values.tolist() for column in columns}
    assert list(values) == ["camera", "score", "is_sharp"]
    assert values["camera"] == [0, -1, 1]
    assert values["score"][0] == 1.5
    assert np.isnan(values["score"][1])
    assert by_name(columns)["is_sharp"].categories == ["True", "False"]
    assert positions.tolist() == [[0, 5], [1, 6], [2, 7]]
