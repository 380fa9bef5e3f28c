"""The numbers on the page are those of results.json."""

import json
import shutil
from pathlib import Path

from report_pages import Page
from report_runs import copy_files
from reptk.report import write
from reptk.report.section_numbers import first_metrics


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
    assert "higher, significant" not in text
    assert "lower, significant" not in text


def test_the_headline_and_the_most_telling_metrics_come_first() -> None:
    names = [
        "knn@20",
        "knn@1",
        "knn@10",
        "recall@1",
        "recall@5",
        "map@r",
        "mrr",
        "few_shot@5",
        "linear",
        "precision@10",
    ]
    names += ["r_precision", "precision@5", "knn_majority@1", "few_shot_std@5"]
    assert first_metrics(names, "knn@20") == [
        "knn@20",
        "knn@1",
        "recall@5",
        "map@r",
        "mrr",
        "few_shot@5",
        "linear",
        "precision@10",
        "r_precision",
    ], "recall@1 is knn@1, and has no place before all others"
    # Unknown metrics of a plugin have a place where there is room.
    assert first_metrics(["recall@1", "mine", "knn_majority@5"], "mine") == ["recall@1", "mine"]


def test_other_metrics_are_in_a_list_that_is_closed(run: Path, tmp_path: Path) -> None:
    folder = copy_files(run, tmp_path / "many", "results.json", "recipe.toml")
    results = json.loads((folder / "results.json").read_text())
    names = [f"knn@{k}" for k in range(10, 40)]
    for row in results["metrics"].values():
        row |= dict.fromkeys(names, 0.5)
    (folder / "results.json").write_text(json.dumps(results))
    source = Page(write(folder)).source
    shown, _, others = source.partition("<details>")
    assert "23 more metrics" in others
    assert [source.count(f">kNN@{k}<") for k in range(11, 40)] == [1] * 29
    assert shown.count('<th scope="row">') <= 25
