"""Pages of search results and near duplicates: whole images, links to their files, and what is left out."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from reptk.embeddings import Embeddings
from reptk.embeddings.duplicates.duplicate_groups import Duplicate, Duplicates
from reptk.embeddings.duplicates.similarity_threshold import SimilarityThreshold
from reptk.embeddings.retrieval.search_images import Neighbor, SearchResult
from reptk.embeddings.viewing import gallery

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def embeddings(tmp_path: Path) -> Embeddings:
    """Five wide images in a folder next to that of the page."""
    ids = tuple(f"class #1/{number}.png" for number in range(5))
    for number, name in enumerate(ids):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (400, 100), (40 * number, 90, 120)).save(path)
    about = {"root": str(tmp_path / "photos")}
    return Embeddings(torch.eye(5), ids, ids, torch.zeros(5, dtype=torch.long), ("class #1",), about)


def result(embeddings: Embeddings) -> SearchResult:
    neighbors = []
    for row in range(1, 5):
        name = embeddings.ids[row]
        neighbors.append(Neighbor(row, row, name, 1 - row / 10, "class #1", embeddings.file(row)))
    return SearchResult(embeddings.ids[0], None, 0, neighbors)


def members(embeddings: Embeddings, count: int) -> list[Duplicate]:
    path = embeddings.file(0)
    return [Duplicate(0, embeddings.ids[0], "", path, 1.0, 0, "") for _ in range(count)]


def test_every_image_of_a_search_links_to_its_file(embeddings: Embeddings, tmp_path: Path) -> None:
    page = gallery.results_page([result(embeddings)], embeddings, "about", tmp_path / "pages")
    assert re.findall(r'data-file="([^"]*)"', page) == [f"../photos/class%20%231/{number}.png" for number in range(5)]
    assert page.count('<a href="../photos/') == 5
    assert 'data-similarity="0.900"' in page
    assert "data-file" not in gallery.results_page([result(embeddings)], embeddings, "about")


def test_few_images_are_embedded_larger_than_many(embeddings: Embeddings, monkeypatch: pytest.MonkeyPatch) -> None:
    few = gallery.results_page([result(embeddings)], embeddings, "about")
    monkeypatch.setattr(gallery, "SIDES_PX", ((4, 384),))
    many = gallery.results_page([result(embeddings)], embeddings, "about")
    assert len(few) > len(many)


def test_a_page_of_duplicates_says_how_many_are_left_out(
    embeddings: Embeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "MAX_IMAGES", 5)
    groups = [members(embeddings, 3), members(embeddings, 3), members(embeddings, 2)]
    duplicates = Duplicates(embeddings, None, SimilarityThreshold(0.9, "as requested"), groups, [])
    page = gallery.duplicates_page(duplicates, "Photos.")
    assert "8 near duplicates in 3 groups: 5 candidates for removal" in page
    assert "Photos. The first 2 of 3 are shown; the table that --out FILE.csv writes has all of them." in page
    assert page.count("<section") == 2
    # All but one of each group can be ticked at once.
    assert page.count(" data-first>") == 2


def test_nothing_is_left_out_of_a_short_page(embeddings: Embeddings) -> None:
    leaks = members(embeddings, 3)
    duplicates = Duplicates(embeddings, embeddings, SimilarityThreshold(0.9, "as requested"), [], leaks)
    page = gallery.duplicates_page(duplicates, "Photos.")
    assert "are shown" not in page
    assert re.findall("<h2[^>]*>([^<]*)", page) == ["Pair 1", "Pair 2", "Pair 3"]
    assert page.count("<img src=") == 6
