"""reptk.search: from an image to its neighbors."""

from pathlib import Path

import pytest
import torch

import reptk
from reptk.embeddings import Embeddings

pytestmark = [pytest.mark.usefixtures("one_thread")]


@pytest.mark.parametrize("kind", ["index", "embeddings", "path"])
def test_an_image_finds_itself_first(kind: str, photo_folder: Path, photo_embeddings: Path, tmp_path: Path) -> None:
    index = photo_embeddings
    if kind == "index":
        index = reptk.index(photo_embeddings, out=tmp_path / "e.index")
    elif kind == "embeddings":
        index = Embeddings.load(photo_embeddings)
    queries = sorted(photo_folder.rglob("*.png"))[:4]
    for query, result in zip(queries, reptk.search(index, queries, k=3), strict=True):
        first, second = result.neighbors[:2]
        assert (result.query, result.path, result.row) == (str(query), query, None)
        assert (first.path, first.note) == (query, "the same file")
        assert first.similarity == pytest.approx(1, abs=1e-3)
        assert second.note == ""
        assert second.similarity < first.similarity


def test_search_equals_brute_force(photo_embeddings: Path) -> None:
    embeddings = Embeddings.load(photo_embeddings)
    similarities = (embeddings.vectors @ embeddings.vectors.T).fill_diagonal_(-2)
    expected_rows = similarities.sort(dim=1, descending=True).indices
    for row, result in enumerate(reptk.search(embeddings, ids=list(embeddings.ids), k=11)):
        assert (result.query, result.path, result.row) == (embeddings.ids[row], None, row)
        expected = expected_rows[row, :11].tolist()
        assert [neighbor.row for neighbor in result.neighbors] == expected
        assert [neighbor.rank for neighbor in result.neighbors] == list(range(1, 12))
        assert [neighbor.label for neighbor in result.neighbors] == [embeddings.class_of(other) for other in expected]


def test_vectors_of_any_length_are_queries(photo_embeddings: Path) -> None:
    embeddings = Embeddings.load(photo_embeddings)
    results = reptk.search(embeddings, 3 * embeddings.vectors[:2], k=1)
    assert [result.query for result in results] == ["query 0", "query 1"]
    assert [result.neighbors[0].row for result in results] == [0, 1]
    assert results[0].neighbors[0].similarity == pytest.approx(1, abs=1e-6)


def test_files_and_ids_in_one_search(photo_folder: Path, photo_embeddings: Path) -> None:
    by_file, by_id = reptk.search(photo_embeddings, photo_folder / "cats" / "00.png", ids=["cats/00.png"], k=2)
    assert by_file.neighbors[0].id == "cats/00.png"
    assert (by_id.path, by_id.row) == (None, 0)
    assert by_id.neighbors[0].row == by_file.neighbors[1].row, "an image of the index does not find itself"


def test_no_queries_have_no_results(photo_embeddings: Path) -> None:
    assert reptk.search(photo_embeddings) == []


def test_k_is_lowered_to_the_number_of_images(photo_embeddings: Path) -> None:
    with pytest.warns(UserWarning, match="k = 99 is more than there is; 12"):
        [result] = reptk.search(photo_embeddings, torch.ones(1, 64), k=99)
    assert len(result.neighbors) == 12
    with pytest.warns(UserWarning, match="11 is used"):
        assert len(reptk.search(photo_embeddings, ids=["3"], k=12)[0].neighbors) == 11
