"""The data of the map: thumbnails that belong to the points, further layouts, many classes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from report_pages import Page, decode_data_uri
from report_runs import RECIPE, make_run
from reptk.config import build
from reptk.config.registry import DATASETS
from reptk.report import write

pytestmark = pytest.mark.usefixtures("one_thread")


def test_each_thumbnail_is_the_image_of_its_point(page: Page) -> None:
    data = build(DATASETS, RECIPE["data"])
    queries = data.query.images.fetch(torch.arange(40)).permute(0, 2, 3, 1).numpy().astype(int)
    atlas = page.data["atlases"]["a0"]
    sheet = decode_data_uri(atlas["uri"]).astype(int)
    assert page.data["maps"][0]["atlas"] == "a0"
    for point in range(40):
        row, column = divmod(point, atlas["columns"])
        top = row * atlas["cell"]
        left = column * atlas["cell"]
        thumbnail = sheet[top : top + atlas["height"], left : left + atlas["width"]]
        assert thumbnail.shape == queries[point].shape
        distances = abs(thumbnail - queries).mean(axis=(1, 2, 3))
        assert int(np.argmin(distances)) == point


def test_a_further_layout_can_be_selected(run: Path, tmp_path: Path) -> None:
    page = Page(write(run, tmp_path / "page.html", map="tsne"))
    assert list(page.data["maps"][0]["layouts"]) == ["pca", "tsne"]
    assert "map-layout" in page.ids("select")


def test_a_thousand_classes_fit_on_the_page(tmp_path: Path) -> None:
    names = tuple(f"class <{number}>" for number in range(1000))
    data_part = {"classes": 1000, "bank": 1000, "query": 1000}
    page = Page(write(make_run(tmp_path / "run", data=data_part, classes=names)))
    assert len(page.data["maps"][0]["classes"]) == 1000
    assert len(page.source) < 4_000_000
