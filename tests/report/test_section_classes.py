"""Metrics by class and confusions on the page."""

import json
from pathlib import Path

from report_pages import Page
from report_runs import copy_files
from reptk.evaluate.predictions import FILE as PREDICTIONS
from reptk.report import write


def test_classes_and_confusions_are_those_of_the_results(run: Path, tmp_path: Path) -> None:
    folder = copy_files(run, tmp_path / "part", "results.json", PREDICTIONS)
    results = json.loads((folder / "results.json").read_text())
    results["classes"] = [{"name": "rare", "bank": 3, "queries": 7, "knn@5": 0.123, "mean": None}]
    results["confusions"] = [{"class": "rare", "taken_for": "common", "count": 5, "of": 7}]
    (folder / "results.json").write_text(json.dumps(results))
    text = Page(write(folder)).text()
    assert "rare taken for common" in text
    assert "5 of 7" in text
    assert "12.3" in text
