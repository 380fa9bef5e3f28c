"""The table of settings, and the files that hold it."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from reptk.core.errors import UsageError
from reptk.evaluate.intervals import QueryMean
from reptk.report.run_files import read_run
from reptk.sweep.comparison_table import ComparisonTable, SettingRun, build_table
from reptk.sweep.print_table import print_table
from reptk.sweep.seed_statistics import OVER_QUERIES, PAIRED_QUERIES, PAIRED_SEEDS, UNPAIRED_QUERIES
from reptk.sweep.write_tables import write_tables
from sweep_runs import tiny, write_run

VALUES = {"a": [0.80, 0.82, 0.81], "b": [0.86, 0.91, 0.88], "c": [0.80, 0.82, 0.81]}


def setting_run(folder: Path, setting: str, seed: int, metrics: dict[str, float], **options) -> SettingRun:
    write_run(folder, metrics, tiny(f"seed={seed}"), **options)
    return SettingRun(setting, seed, read_run(folder, folder.name))


@pytest.fixture
def runs(tmp_path: Path) -> list[SettingRun]:
    runs = []
    for setting, values in VALUES.items():
        for seed, value in enumerate(values):
            metrics = {"knn@20": value, "knn@1": value - 0.1, "map@r": value / 2, "mrr": 0.5, "linear": value + 0.05}
            runs.append(setting_run(tmp_path / f"{setting}{seed}", setting, seed, metrics))
    return runs


@pytest.fixture
def table(runs: list[SettingRun]) -> ComparisonTable:
    return build_table(runs)


def test_the_best_is_first_and_equal_ones_stay_in_order(table: ComparisonTable) -> None:
    assert [row.setting for row in table.rows] == ["b", "a", "c"]
    assert table.headline == "knn@20"
    assert table.columns == ["knn@20", "knn@1", "map@r", "linear"]
    assert table.reference == "b"
    assert [row.seconds for row in table.rows] == [11.0, 11.0, 11.0]


def test_the_order_of_runs_does_not_matter(runs: list[SettingRun], table: ComparisonTable) -> None:
    shuffled = [runs[number] for number in (2, 0, 1, 5, 3, 4, 8, 6, 7)]
    assert build_table(shuffled) == table


def test_numbers_are_those_of_scipy(table: ComparisonTable) -> None:
    row = table.rows[1]
    values = VALUES["a"]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert row.metrics["knn@20"][:3] == pytest.approx((np.mean(values), low, high))
    difference = row.differences["knn@20"]
    expected = stats.ttest_rel(values, VALUES["b"]).confidence_interval(0.95)
    assert (difference.low, difference.high) == pytest.approx((expected.low, expected.high))
    assert difference.kind == PAIRED_SEEDS
    assert table.rows[0].differences == {}


def test_the_first_setting_as_reference(runs: list[SettingRun]) -> None:
    table = build_table(runs, reference="first")
    assert table.reference == "a"
    assert table.rows[0].differences["knn@20"].mean == pytest.approx(np.mean(VALUES["b"]) - np.mean(VALUES["a"]))
    assert table.rows[2].differences["knn@20"].mean == 0


def test_another_metric(runs: list[SettingRun]) -> None:
    table = build_table(runs, metric="map@r")
    assert table.headline == "map@r"
    assert table.columns[0] == "map@r"
    with pytest.raises(UsageError, match=r"no run has the metric 'map'. Nearest: map@r"):
        build_table(runs, metric="map")
    with pytest.raises(UsageError, match="no finished run"):
        build_table([])


def test_single_runs_are_compared_by_their_queries(tmp_path: Path) -> None:
    hits_a = [True] * 30 + [False] * 10
    hits_b = [True] * 20 + [False] * 15 + [True] * 5
    a = setting_run(tmp_path / "a", "a", 0, {"knn@5": 0.75}, hits=hits_a)
    b = setting_run(tmp_path / "b", "b", 0, {"knn@5": 0.625}, hits=hits_b)
    table = build_table([a, b])
    assert table.rows[0].metrics["knn@5"] == (0.75, 0.65, 0.85, 1, OVER_QUERIES)
    difference = table.rows[1].differences["knn@5"]
    # The bootstrap by numpy, of which the draws are others.
    gaps = np.array(hits_b, float) - np.array(hits_a, float)
    draws = np.random.default_rng(0).choice(gaps, (20_000, len(gaps))).mean(1)
    assert difference.mean == gaps.mean() == -0.125
    assert (difference.low, difference.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=0.03)
    exact = QueryMean(torch.tensor(hits_b).float()).gain_over(QueryMean(torch.tensor(hits_a).float()))
    assert difference[:3] == exact
    assert difference.kind == PAIRED_QUERIES


def test_single_runs_without_predictions(tmp_path: Path) -> None:
    a = setting_run(tmp_path / "a", "a", 0, {"knn@5": 0.75})
    b = setting_run(tmp_path / "b", "b", 3, {"knn@5": 0.625})
    difference = build_table([a, b]).rows[1].differences["knn@5"]
    assert difference.kind == UNPAIRED_QUERIES
    assert (difference.low, difference.high) == pytest.approx(
        (-0.125 - np.hypot(0.1, 0.1), -0.125 + np.hypot(0.1, 0.1))
    )


def test_a_setting_with_fewer_seeds_is_compared_by_the_shared_ones(runs: list[SettingRun]) -> None:
    rows = {row.setting: row for row in build_table([*runs[:2], *runs[3:]]).rows}
    assert len(rows["a"].runs) == 2
    assert rows["a"].differences["knn@20"].count == 2
    assert rows["a"].differences["knn@20"].mean == pytest.approx((0.80 - 0.86 + 0.82 - 0.91) / 2)


def test_a_run_that_lacks_the_metric_is_last(tmp_path: Path, runs: list[SettingRun]) -> None:
    other = setting_run(tmp_path / "other", "d", 0, {"linear": 0.99})
    rows = build_table([other, *runs]).rows
    assert rows[-1].setting == "d"
    assert "knn@20" not in rows[-1].differences
    assert rows[-1].differences["linear"].mean == pytest.approx(0.99 - 0.91)


def test_files_hold_every_number(tmp_path: Path, runs: list[SettingRun], table: ComparisonTable) -> None:
    out = tmp_path / "out"
    out.mkdir()
    write_tables(out, "sweep", table, title="reptk sweep x|y", failed={"e <b>": "no\nluck"}, facts={"command": "c"})
    lines = list(csv.DictReader(io.StringIO((out / "sweep.csv").read_text())))
    assert [line["setting"] for line in lines] == ["b", "a", "c"]
    estimate = table.rows[1].metrics["map@r"]
    assert float(lines[1]["map@r"]) == estimate.mean
    assert float(lines[1]["map@r low"]) == estimate.low
    assert float(lines[1]["knn@20 difference high"]) == table.rows[1].differences["knn@20"].high
    assert lines[0]["knn@20 difference"] == ""
    assert lines[1]["compared_with"] == "b"
    by_run = list(csv.DictReader(io.StringIO((out / "runs.csv").read_text())))
    assert len(by_run) == 9
    assert [float(line["knn@20"]) for line in by_run if line["setting"] == "b"] == VALUES["b"]
    content = json.loads((out / "sweep.json").read_text())
    assert [row["metrics"]["mrr"]["value"] for row in content["settings"]] == [0.5, 0.5, 0.5]
    assert content["failed"] == {"e <b>": "no\nluck"}
    assert content["command"] == "c"
    assert set(content["intervals"]) == {"seeds", "paired seeds", "equal values"}
    page = (out / "sweep.md").read_text()
    assert "# reptk sweep x\\|y" in page
    assert "e &lt;b>: no\\nluck" in page
    assert len({line.count("|") for line in page.splitlines() if line.startswith("|")}) == 1


def test_the_printed_table(table: ComparisonTable, capsys: pytest.CaptureFixture) -> None:
    print_table(table)
    lines = capsys.readouterr().out.splitlines()
    assert "minus the best" in lines[0]
    assert lines[1].split()[:3] == ["b", "3", "88.3"]
    assert lines[2].split()[:3] == ["a", "3", "81.0"]
    assert any("may be beyond it by chance" in line for line in lines)
