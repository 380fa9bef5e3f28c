"""reptk report: the map, and that pictures, curves and classes keep to their room."""

from pathlib import Path

import pytest
import torch

from report_pages import Page, opened
from report_runs import RECIPE, make_run
from reptk import DATASETS
from reptk.config import build
from reptk.core.errors import DataError
from reptk.data import Data, InMemory, Split
from reptk.report import layouts, write
from reptk.report.data_uri import image_data_uri
from reptk.report.embedded_images import EmbeddedImages, Picture
from reptk.report.run_images import RunImages
from reptk.report.thumbnail_atlas import MAX_PIXELS, build_atlas
from reptk.report.training_curves import MAX_POINTS, rounded_range, thin

pytestmark = pytest.mark.usefixtures("one_thread")


# The map


def test_principal_components_are_those_of_scikit_learn() -> None:
    from sklearn.decomposition import PCA

    features = torch.randn(50, 8, generator=torch.Generator().manual_seed(1)) * torch.arange(1, 9)
    made, share = layouts.principal_components(features, 2)
    theirs = PCA(2).fit(features.numpy())
    expected = torch.from_numpy(theirs.transform(features.numpy()))
    assert torch.allclose(made.abs(), expected.abs().float(), atol=1e-3)
    assert share.tolist() == pytest.approx(theirs.explained_variance_ratio_.tolist(), abs=1e-5)
    assert layouts.principal_components(features[:1], 2)[0].tolist() == [[0, 0]]
    placed = layouts.quantize(made)
    assert placed.min() >= 0
    assert placed.max() <= 65535
    ratio = (made.amax(0) - made.amin(0)) / (placed.amax(0) - placed.amin(0))
    assert ratio[0] == pytest.approx(ratio[1].item(), rel=1e-3)


def test_a_further_layout(run: Path, tmp_path: Path) -> None:
    page = Page(write(run, tmp_path / "page.html", map="tsne"))
    assert list(page.data["maps"][0]["layouts"]) == ["pca", "tsne"]
    assert "map-layout" in page.ids("select")


def test_umap_missing_is_said_before_anything_is_done(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layouts, "find_spec", lambda name: None)
    with pytest.raises(Exception, match="reptk\\[viz\\]"):
        write(run, tmp_path / "page.html", map="umap")
    assert not list(tmp_path.iterdir())


# Sizes


@pytest.mark.parametrize("most", [1_500_000, 60_000])
def test_thumbnails_keep_to_their_bytes(most: int) -> None:
    noise = torch.randint(256, (500, 3, 120, 120), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    atlas = build_atlas(Split(InMemory(noise), torch.zeros(500)), torch.arange(500), most)
    assert len(atlas.uri) <= most
    sheet = opened(atlas.uri)
    assert sheet.shape[0] * sheet.shape[1] <= MAX_PIXELS
    assert sheet.shape[1] == atlas.columns * atlas.cell
    assert max(atlas.width, atlas.height) <= atlas.cell


def test_an_album_keeps_to_its_bytes() -> None:
    noise = torch.randint(256, (40, 3, 90, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    split = Split(InMemory(noise), torch.zeros(40))
    images = RunImages("d0", Data(split, split, split, (), ""))
    embedded = EmbeddedImages()
    for max_bytes in (30_000, 60_000):
        embedded.set_max_bytes(max_bytes)
        embedded.add(images, "query", torch.arange(40))
        assert max_bytes / 2 < sum(map(len, embedded.uris.values())) <= max_bytes
    assert embedded.picture(images, "query", 0, "it") == Picture("it", "d0/query/0")
    assert embedded.picture(images, "query", 39, "it") == Picture("it")


@pytest.mark.usefixtures("restored_registries")
def test_unreadable_images_leave_their_place_empty(tmp_path: Path) -> None:
    class Torn(InMemory):
        def fetch(self, numbers: torch.Tensor) -> torch.Tensor:
            if bool((numbers == 3).any()):
                raise DataError("torn")
            return super().fetch(numbers)

    @DATASETS.register("torn")
    def torn() -> Data:
        data = build(DATASETS, RECIPE["data"] | {"query": 12})
        query = Split(Torn(data.query.images.fetch(torch.arange(len(data.query)))), data.query.labels)
        return Data(data.train, data.bank, query, data.classes, data.protocol)

    page = Page(write(make_run(tmp_path / "run", data={"name": "torn"})))
    assert page.data["atlases"]["a0"]["missing"] == [3]
    assert "d0/query/3" not in page.data["pictures"]
    assert {f"d0/query/{number}" for number in range(12) if number != 3} <= set(page.data["pictures"])
    assert "no picture" in page.text()


def test_small_pictures_are_kept_to_the_bit_and_large_ones_reduced() -> None:
    image = torch.randint(256, (3, 40, 40), dtype=torch.uint8)
    assert (opened(image_data_uri(image)) == image.permute(1, 2, 0).numpy()).all()
    assert opened(image_data_uri(torch.randint(256, (3, 300, 200), dtype=torch.uint8))).shape == (128, 85, 3)


def test_long_curves_are_thinned_without_moving_them() -> None:
    points = [(float(at), 2.0 * at) for at in range(10_007)]
    thinned = thin(points)
    assert len(thinned) <= MAX_POINTS
    assert all(y == pytest.approx(2 * x) for x, y in thinned)
    assert thin(points[:5]) == points[:5]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.31, 0.83), (-3.2, -1.1), (5, 5), (0, 0), (1e-6, 3e-3)])
def test_axes_have_round_ends_that_hold_everything(low: float, high: float) -> None:
    (first, last), ticks = rounded_range(low, high)
    assert first <= low <= high <= last
    assert 2 <= len(ticks) <= 6
    assert first < last


def test_a_thousand_classes(tmp_path: Path) -> None:
    names = tuple(f"class <{number}>" for number in range(1000))
    page = Page(write(make_run(tmp_path / "run", data={"classes": 1000, "bank": 1000, "query": 1000}, classes=names)))
    assert len(page.data["maps"][0]["classes"]) == 1000
    assert len(page.source) < 4_000_000
