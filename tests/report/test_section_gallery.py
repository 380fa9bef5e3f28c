"""The gallery: which queries it shows, and that each place has the image that it says."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from report_pages import Page, decode_data_uri
from report_runs import RECIPE, copy_files, make_run
from reptk.config import build
from reptk.config.registry import DATASETS
from reptk.evaluate.predictions import Predictions
from reptk.report import write
from reptk.report.run_files import read_run
from reptk.report.section_gallery import select_queries

pytestmark = pytest.mark.usefixtures("one_thread")


def test_each_place_has_the_image_of_its_number(page: Page) -> None:
    data = build(DATASETS, RECIPE["data"])
    names = [attrs["data-image"] for _, attrs in page.elements if "data-image" in attrs]
    images = [name for name in names if not name.startswith("view/")]
    assert len(images) > 100
    for name in set(images):
        _, split, number = name.split("/")
        expected = data.splits[split].images.fetch(torch.tensor([int(number)]))[0]
        assert (decode_data_uri(page.data["images"][name]) == expected.permute(1, 2, 0).numpy()).all()


def test_most_confident_failures_come_first(other: Path) -> None:
    predictions = read_run(other, "b").predictions
    rows = {selection.title: selection.rows for selection in select_queries(predictions)}
    is_wrong = predictions.predicted != predictions.labels
    assert list(rows) == ["Most confident failures", "Failures", "Right", "Random"]
    assert bool(is_wrong[rows["Most confident failures"]].all())
    assert bool(is_wrong[rows["Failures"]].all())
    assert not bool(is_wrong[rows["Right"]].any())
    assert len(predictions.confidence[is_wrong].unique()) > 1
    confidence = predictions.confidence[rows["Most confident failures"]].tolist()
    assert confidence == sorted(confidence, reverse=True)
    assert confidence[0] == predictions.confidence[is_wrong].max()


def test_without_labels_there_are_neighbors_only(run: Path, tmp_path: Path) -> None:
    folder = copy_files(run, tmp_path / "part", "results.json", "recipe.toml")
    labeled = Predictions.load(run)
    no_labels = torch.full_like(labeled.labels, -1)
    changes = {
        "vote": "",
        "classes": (),
        "labels": no_labels,
        "predicted": no_labels,
        "neighbor_labels": torch.full_like(labeled.neighbor_labels, -1),
        "query_split": "bank",
        "confidence": torch.zeros_like(labeled.confidence),
    }
    Predictions(**{**vars(labeled), **changes}).save(folder)
    page = Page(write(folder))
    assert "classes" not in page.ids("section")
    assert page.data["maps"][0]["labels"] is None
    assert "wrong" not in " ".join(attrs.get("alt") or "" for _, attrs in page.elements)
    assert any(attrs.get("data-image", "").startswith("d0/bank/") for _, attrs in page.elements)


def test_file_names_of_any_kind_are_shown(tmp_path: Path) -> None:
    for class_folder in ("<b>", "\u5199\u771f"):
        folder = tmp_path / "photos" / class_folder
        folder.mkdir(parents=True)
        for number in range(20):
            Image.effect_noise((20, 20), 90 + number).convert("RGB").save(folder / f"<u>'{number}.png")
    data_part = {"name": "folder", "root": str(tmp_path / "photos"), "size": 16, "holdout": 4}
    text = Page(write(make_run(tmp_path / "run", data=data_part))).text()
    assert re.search(r"<u>'\d+\.png", text)
