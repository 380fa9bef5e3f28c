"""reptk report: several runs beside each other, and runs that lack something."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from report_pages import Page
from report_runs import make_run
from reptk.evaluate.intervals import QueryMean
from reptk.evaluate.predictions import FILE as EVIDENCE
from reptk.evaluate.predictions import Predictions
from reptk.report import run_comparison as compare
from reptk.report import write
from reptk.report.run_files import read_run

pytestmark = pytest.mark.usefixtures("one_thread")


# Several runs


def test_runs_beside_each_other(run: Path, other: Path, tmp_path: Path) -> None:
    page = Page(write([run, other], tmp_path / "both.html"))
    text = page.text()
    assert "a leads in kNN@5" in text
    assert [space["name"] for space in page.data["maps"]] == ["a", "b"]
    assert len(page.data["atlases"]) == 1, "the same images once"
    assert {"gallery-tab-0", "gallery-tab-1", "g0-tab-0", "g1-tab-3"} <= set(page.ids())
    assert "loss.temperature" in text
    assert sum("data-series" in attrs and len(json.loads(attrs["data-series"])) == 2 for _, attrs in page.elements) >= 3
    assert "less, beyond the interval" in text


def test_a_run_beside_its_copy_does_not_differ(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "again")
    text = Page(write([run, tmp_path / "again"], tmp_path / "both.html")).text()
    assert "do not differ in kNN@5 beyond chance" in text
    assert "All runs have the same recipe." in text
    assert "beyond the interval" not in text


def test_differences_of_independent_samples_and_in_pairs() -> None:
    apart = compare.independent_difference(0.8, (0.75, 0.84), 0.7, (0.64, 0.76))
    assert (apart.value, apart.low, apart.high) == pytest.approx(
        (0.1, 0.1 - np.hypot(0.05, 0.06), 0.1 + np.hypot(0.04, 0.06))
    )
    assert apart.is_significant
    assert not compare.independent_difference(0.8, (0.7, 0.9), 0.7, (0.6, 0.8)).is_significant
    assert not compare.independent_difference(0.8, None, 0.7, (0.6, 0.8)).is_significant
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(2000, generator=generator) < 0.8
    b = a & (torch.rand(2000, generator=generator) < 0.97)
    _, low, high = QueryMean(a.float()).gain_over(QueryMean(b.float()))
    gaps = a.double() - b.double()
    middle, wide = gaps.mean().item(), 1.96 * gaps.std().item() / len(gaps) ** 0.5
    assert (low, high) == pytest.approx((middle - wide, middle + wide), abs=1e-3)
    assert low > 0, "in pairs, a small difference shows"
    assert QueryMean(a.float()).gain_over(QueryMean(a.float())) == (0, 0, 0)


def test_another_folder_is_another_data_set() -> None:
    one = {"name": "folder", "root": "mine", "cache": False}
    assert compare.data_identity(one) == compare.data_identity(one | {"cache": True})
    assert compare.data_identity(one) != compare.data_identity(one | {"root": "yours"})


def test_pairs_need_the_same_queries(run: Path, other: Path, tmp_path: Path) -> None:
    first, second = read_run(run, "a"), read_run(other, "b")
    assert compare.difference(second, first, "knn@5").method == "paired"
    assert compare.difference(second, first, "recall@1").method == "paired"
    elsewhere = make_run(tmp_path / "c", data={"query": 44})
    assert compare.difference(read_run(elsewhere, "c"), first, "knn@5").method == "intervals"


# Runs that lack something


def test_an_unfinished_run_has_curves(run: Path, tmp_path: Path) -> None:
    folder = partial(run, tmp_path, "recipe.toml", "metrics.jsonl")
    (folder / "status.json").write_text('{"status": "running"}')
    page = Page(write(folder))
    assert "tiny is running: there are curves, and no numbers yet." in page.text()
    assert {"curves", "recipe", "views"} <= set(page.ids("section"))
    assert {"gallery", "space", "numbers"}.isdisjoint(page.ids("section"))


def test_an_old_run_has_numbers_without_intervals(run: Path, tmp_path: Path) -> None:
    folder = partial(run, tmp_path, "recipe.toml", "metrics.jsonl")
    results = json.loads((run / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps({key: results[key] for key in ("metrics", "headline", "protocol")}))
    page = Page(write(folder))
    assert re.search(
        r"kNN@5 is [\d.]+ %, [\d.]+ points above the untrained encoder and [\d.]+ points above raw pixels", page.text()
    )
    assert "95 %" not in page.text()


def test_an_evaluation_alone_has_no_curves(run: Path, tmp_path: Path) -> None:
    page = Page(write(partial(run, tmp_path, "results.json", EVIDENCE)))
    assert {"numbers", "gallery", "space", "classes"} <= set(page.ids("section"))
    assert {"curves", "recipe", "views"}.isdisjoint(page.ids("section"))


def test_classes_and_confusions_as_results_have_them(run: Path, tmp_path: Path) -> None:
    folder = partial(run, tmp_path, "results.json", EVIDENCE)
    results = json.loads((folder / "results.json").read_text())
    results["classes"] = [{"name": "rare", "bank": 3, "queries": 7, "knn@5": 0.123, "mean": None}]
    results["confusions"] = [{"class": "rare", "taken_for": "common", "count": 5, "of": 7}]
    (folder / "results.json").write_text(json.dumps(results))
    text = Page(write(folder)).text()
    assert "rare taken for common" in text.replace("  ", " ")
    assert "5 of 7" in text
    assert "12.3" in text


def test_a_log_that_broke_off_in_the_middle_of_a_line(run: Path, tmp_path: Path) -> None:
    folder = partial(run, tmp_path, "metrics.jsonl")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "epoch": NaN, "loss": NaN}\n{"step": 14, "ep')
    assert "curves" in Page(write(folder)).ids("section")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "no_such_data"}, "No pictures. The data set cannot be opened"),
        ({"query": 20}, "No pictures. The data set has changed since: it has no longer the images"),
        ({"classes": 3}, "No pictures. The data set has changed since: its labels are no longer those"),
    ],
)
def test_data_that_is_gone_or_another(change: dict, said: str, run: Path, tmp_path: Path) -> None:
    folder = partial(run, tmp_path, "results.json", EVIDENCE)
    results = json.loads((folder / "results.json").read_text())
    results["protocol"]["data"] |= change
    (folder / "results.json").write_text(json.dumps(results))
    page = Page(write(folder))
    assert said in page.text()
    assert not page.data["pictures"]
    assert page.data["maps"][0]["count"] == 40


def test_without_labels_there_are_neighbours_only(run: Path, tmp_path: Path) -> None:
    folder = partial(run, tmp_path, "results.json", "recipe.toml")
    known = Predictions.load(run)
    absent = torch.full_like(known.labels, -1)
    changed = {
        "vote": "",
        "classes": (),
        "labels": absent,
        "predicted": absent,
        "neighbor_labels": known.neighbor_labels * 0 - 1,
    }
    changed |= {"query_split": "bank", "confidence": known.confidence * 0}
    Predictions(**{**known.__dict__, **changed}).save(folder)
    page = Page(write(folder))
    assert "classes" not in page.ids("section")
    assert page.data["maps"][0]["labels"] is None
    assert "wrong" not in " ".join(attrs.get("alt") or "" for _, attrs in page.elements)
    assert any(attrs.get("data-picture", "").startswith("d0/bank/") for _, attrs in page.elements)


def partial(run: Path, tmp_path: Path, *names: str) -> Path:
    folder = tmp_path / "part"
    folder.mkdir()
    for name in names:
        shutil.copy(run / name, folder / name)
    return folder
