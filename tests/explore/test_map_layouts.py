"""Positions on the map, and the cache that they are read from."""

from pathlib import Path

import pytest
import torch

from embedding_inputs import unit_vectors
from reptk.explore import map_layouts
from reptk.explore.map_layouts import available_layouts, default_layout, positions_of, scaled
from reptk.report.layouts import map_positions

pytestmark = [pytest.mark.usefixtures("one_thread")]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(map_layouts, "cache_folder", lambda: tmp_path)
    return tmp_path / "maps"


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The layouts that are computed, in order."""
    layouts = []

    def count(layout: str, vectors: torch.Tensor) -> torch.Tensor:
        layouts.append(layout)
        return map_positions(layout, vectors)

    monkeypatch.setattr(map_layouts, "map_positions", count)
    return layouts


@pytest.mark.parametrize("layout", ["pca", "tsne"])
def test_positions_are_computed_once_for_the_same_vectors(cache: Path, computed: list[str], layout: str) -> None:
    vectors = unit_vectors(30)
    first = positions_of(layout, vectors)
    assert first.shape == (30, 2)
    assert float(first.abs().max()) == pytest.approx(1)
    assert torch.equal(positions_of(layout, vectors.clone()), first)
    assert computed == [layout]
    positions_of(layout, unit_vectors(30, key=1))
    assert computed == [layout, layout]


def test_a_damaged_cache_is_computed_again(cache: Path, computed: list[str]) -> None:
    vectors = unit_vectors(30)
    first = positions_of("pca", vectors)
    [file] = cache.iterdir()
    for content in (b"", b"damaged", file.read_bytes()[:-1]):
        file.write_bytes(content)
        assert torch.equal(positions_of("pca", vectors), first)
    assert len(computed) == 4


def test_a_cache_that_cannot_be_written_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(map_layouts, "cache_folder", lambda: tmp_path / "file")
    assert positions_of("pca", unit_vectors(30)).shape == (30, 2)


def test_scaled_keeps_proportions() -> None:
    positions = torch.tensor([[10.0, 1.0], [14.0, 2.0], [12.0, 1.5]])
    assert scaled(positions).tolist() == [[-1, -0.25], [1, 0.25], [0, 0]]
    assert scaled(torch.ones(3, 2)).tolist() == [[0, 0]] * 3


def test_layouts_depend_on_how_many_points_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_layouts, "find_spec", lambda name: None)
    assert list(available_layouts(100, has_stored=False)) == ["pca", "tsne"]
    assert list(available_layouts(100_000, has_stored=True)) == ["stored", "pca"]
    assert default_layout(100, has_stored=False) == "tsne"
    assert default_layout(100_000, has_stored=False) == "pca"
    assert default_layout(100_000, has_stored=True) == "stored"
    monkeypatch.setattr(map_layouts, "find_spec", lambda name: name)
    assert default_layout(100_000, has_stored=False) == "umap"
    assert list(available_layouts(100_000, has_stored=False)) == ["pca", "umap"]
