"""The numbers on the page are those of results.json."""

import json
import shutil
from pathlib import Path

from report_pages import Page
from reptk.report import write


def test_numbers_have_intervals_baselines_and_gains(page: Page, run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    text = page.text()
    assert results["verdict"]["sentence"] in text
    assert results["verdict"]["advice"][0] in text
    for row, metrics in results["metrics"].items():
        # The page is of a run, whose baseline may have had pretrained weights.
        assert row.replace("untrained", "before training") in text
        for metric, value in metrics.items():
            low, high = results["intervals"][row][metric]
            assert f"{100 * value:.1f}" in text
            if row == "trained":
                assert f"{100 * low:.1f} \u2013 {100 * high:.1f}" in text
    gain, _, _ = results["gains"]["raw pixels"]["knn@5"]
    assert f"{100 * gain:+.1f}" in text


def test_a_run_does_not_differ_from_its_copy(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "again")
    text = Page(write([run, tmp_path / "again"], tmp_path / "both.html")).text()
    assert "have the same kNN@5." in text
    assert "All runs have the same recipe." in text
    assert "beyond the interval" not in text
