"""The plots as PNG files."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reptk.report import write

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ["confusion.png", "curves.png", "map.png"]


def test_the_same_runs_give_the_same_plots(run: Path, other: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    folders = [tmp_path / "1", tmp_path / "2"]
    for folder in folders:
        write([run, other], folder.with_suffix(".html"), png=folder)
        assert sorted(path.name for path in folder.iterdir()) == NAMES
    for name in NAMES:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
        with Image.open(folders[0] / name) as image:
            assert len(np.unique(np.array(image.convert("L")))) > 10, "something is drawn"


def test_without_matplotlib_there_is_a_page_and_a_warning(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reptk.report.plots.find_spec", lambda name: None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        path = write(run, tmp_path / "page.html", png=tmp_path)
    messages = [str(warning.message) for warning in caught]
    assert [message for message in messages if "matplotlib" in message] == [
        "PNG plots need matplotlib, which is not installed: pip install 'reptk[viz]'"
    ]
    assert path.is_file()
