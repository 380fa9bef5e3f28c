"""The images of a run whose data set is gone, has changed, or cannot be read in part."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from report_pages import Page
from report_runs import RECIPE, copy_files, make_run
from reptk.config import build
from reptk.config.registry import DATASETS
from reptk.core.errors import DataError
from reptk.data import Data, InMemory, Split
from reptk.evaluate.predictions import FILE as PREDICTIONS
from reptk.report import write

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "no_such_data"}, "No images. The data set cannot be opened"),
        ({"query": 20}, "No images. The data set has changed since: it has no longer the images"),
        ({"classes": 3}, "No images. The data set has changed since: its labels are no longer those"),
    ],
)
def test_data_that_is_gone_or_has_changed(change: dict[str, Any], message: str, run: Path, tmp_path: Path) -> None:
    folder = copy_files(run, tmp_path / "part", "results.json", PREDICTIONS)
    results = json.loads((folder / "results.json").read_text())
    results["protocol"]["data"] |= change
    (folder / "results.json").write_text(json.dumps(results))
    page = Page(write(folder))
    assert message in page.text()
    assert not page.data["images"]
    assert page.data["maps"][0]["count"] == 40


@pytest.mark.usefixtures("restored_registries")
def test_an_unreadable_image_leaves_its_place_empty(tmp_path: Path) -> None:
    class OneUnreadable(InMemory):
        def fetch(self, numbers: torch.Tensor) -> torch.Tensor:
            if bool((numbers == 3).any()):
                raise DataError("torn")
            return super().fetch(numbers)

    @DATASETS.register("one_unreadable")
    def one_unreadable() -> Data:
        data = build(DATASETS, RECIPE["data"] | {"query": 12})
        pixels = data.query.images.fetch(torch.arange(len(data.query)))
        query = Split(OneUnreadable(pixels), data.query.labels)
        return Data(data.train, data.bank, query, data.classes, data.protocol)

    page = Page(write(make_run(tmp_path / "run", data={"name": "one_unreadable"})))
    assert page.data["atlases"]["a0"]["missing"] == [3]
    assert "d0/query/3" not in page.data["images"]
    assert {f"d0/query/{number}" for number in range(12) if number != 3} <= set(page.data["images"])
    assert "no image" in page.text()
