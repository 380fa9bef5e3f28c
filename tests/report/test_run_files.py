"""Runs that lack some of their files."""

import json
import re
from pathlib import Path

import pytest

from report_pages import Page
from report_runs import copy_files
from reptk.evaluate.predictions import FILE as PREDICTIONS
from reptk.report import write

pytestmark = pytest.mark.usefixtures("one_thread")


def test_an_unfinished_run_has_curves(run: Path, tmp_path: Path) -> None:
    folder = copy_files(run, tmp_path / "part", "recipe.toml", "metrics.jsonl")
    (folder / "status.json").write_text('{"status": "running"}')
    page = Page(write(folder))
    assert "tiny is running: there are curves, and no numbers yet." in page.text()
    assert {"curves", "recipe", "views"} <= set(page.ids("section"))
    assert {"gallery", "space", "numbers"}.isdisjoint(page.ids("section"))


def test_an_old_run_has_numbers_without_intervals(run: Path, tmp_path: Path) -> None:
    folder = copy_files(run, tmp_path / "part", "recipe.toml", "metrics.jsonl")
    results = json.loads((run / "results.json").read_text())
    old_results = {key: results[key] for key in ("metrics", "headline", "protocol")}
    (folder / "results.json").write_text(json.dumps(old_results))
    text = Page(write(folder)).text()
    sentence = r"kNN@5 is [\d.]+ %, [\d.]+ points above the encoder before training and [\d.]+ points above raw pixels"
    assert re.search(sentence, text)
    assert "95 %" not in text


def test_an_evaluation_alone_has_no_curves(run: Path, tmp_path: Path) -> None:
    page = Page(write(copy_files(run, tmp_path / "part", "results.json", PREDICTIONS)))
    assert {"numbers", "gallery", "space", "classes"} <= set(page.ids("section"))
    assert {"curves", "recipe", "views"}.isdisjoint(page.ids("section"))


def test_a_log_may_end_within_a_line(run: Path, tmp_path: Path) -> None:
    folder = copy_files(run, tmp_path / "part", "metrics.jsonl")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "epoch": NaN, "loss": NaN}\n{"step": 14, "ep')
    assert "curves" in Page(write(folder)).ids("section")
