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
from reptk.sweep.comparison_table import ComparisonTable, FailedRun, SettingRun, build_table
from reptk.sweep.print_table import print_table
from reptk.sweep.seed_statistics import OVER_QUERIES, PAIRED_QUERIES, PAIRED_SEEDS, UNPAIRED_QUERIES
from reptk.sweep.table_texts import difference_text
from reptk.sweep.write_tables import as_json, markdown, runs_csv, settings_csv, write_tables
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


def test_a_reference_without_the_metric_is_refused(tmp_path: Path, runs: list[SettingRun]) -> None:
    other = setting_run(tmp_path / "other", "d", 0, {"linear": 0.99})
    with pytest.raises(UsageError, match=r"--against first: the first setting, d, has no knn@20.*--metric .linear."):
        build_table([other, *runs], reference="first")
    table = build_table([other, *runs], reference="first", metric="linear")
    assert table.reference == "d"


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


def test_a_difference_of_fewer_seeds_than_the_means_says_so(
    runs: list[SettingRun], capsys: pytest.CaptureFixture
) -> None:
    # The best has all three seeds, the others lack one.
    table = build_table([*runs[:2], *runs[3:6], *runs[7:]])
    assert [row.setting for row in table.rows] == ["b", "c", "a"]
    difference = table.rows[2].differences["knn@20"].mean
    means = [row.metrics["knn@20"].mean for row in table.rows]
    assert difference != pytest.approx(means[2] - means[0])
    text = difference_text(table.rows[2], table)
    assert text.startswith(f"{100 * difference:+.1f} [")
    assert text.endswith("(2 shared seeds)")
    print_table(table)
    printed = capsys.readouterr().out
    for output in (printed, markdown(table, "title")):
        assert output.count("(2 shared seeds)") == 2
        assert "so it is not the difference of the two" in output
    assert "shared seed" not in markdown(build_table(runs), "title")


def test_intervals_end_where_a_share_ends(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    runs = []
    for setting, values in {"a": (0.90, 0.98), "b": (0.3, 0.9)}.items():
        for seed, value in enumerate(values):
            metrics = {"knn@20": value, "of_a_plugin": value}
            runs.append(setting_run(tmp_path / f"{setting}{seed}", setting, seed, metrics))
    table = build_table(runs)
    best, other = table.rows
    assert best.metrics["knn@20"].high == 1.0
    assert best.metrics["knn@20"].low == best.metrics["of_a_plugin"].low
    assert best.metrics["of_a_plugin"].high > 1.0
    assert (other.metrics["knn@20"].low, other.metrics["knn@20"].high) == (0.0, 1.0)
    assert (other.differences["knn@20"].low, other.differences["knn@20"].high) == (-1.0, 1.0)
    print_table(table)
    printed = capsys.readouterr().out
    assert "[0.0, 100.0]" in printed
    for text in (printed, markdown(table, "title")):
        assert "intervals are cut where the metric ends" in text
    assert "cut at 0 and 1" in as_json(table, {})["intervals"]["seeds"]
    assert "0.0" in settings_csv(table).splitlines()[2].split(",")


def test_failed_runs_are_in_the_table(tmp_path: Path, runs: list[SettingRun], capsys: pytest.CaptureFixture) -> None:
    failed = [FailedRun("d", 1, "no luck"), FailedRun("d", 0, "no\nluck"), FailedRun("a", 7, "killed")]
    table = build_table(runs, failed=failed)
    without = build_table(runs)
    assert [row.setting for row in table.rows] == ["b", "a", "c", "d"]
    assert [row.metrics for row in table.rows[:3]] == [row.metrics for row in without.rows]
    print_table(table)
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert lines[2].split()[:5] == ["a", "3", "of", "4", "81.0"]
    assert lines[4].split() == ["d", "0", "of", "2", "failed"]
    assert "| d | 0 of 2 | failed |" in markdown(table, "title")
    rows = list(csv.DictReader(io.StringIO(settings_csv(table))))
    assert [(row["setting"], row["n"], row["failed"]) for row in rows][2:] == [("c", "3", "0"), ("d", "0", "2")]
    assert rows[3]["knn@20"] == rows[3]["compared_with"] == ""
    by_run = list(csv.DictReader(io.StringIO(runs_csv(table))))
    named = [(row["setting"], row["seed"], row["failed"]) for row in by_run if row["failed"]]
    assert named == [("a", "7", "killed"), ("d", "0", "no\\nluck"), ("d", "1", "no luck")]
    content = as_json(table, {})
    assert [row["failed_seeds"] for row in content["settings"]] == [[], [7], [], [0, 1]]
    assert content["settings"][3]["n"] == 0


def test_a_setting_without_others_that_have_a_result_has_no_differences(runs: list[SettingRun]) -> None:
    table = build_table(runs[:3], failed=[FailedRun("b", 0, "no luck")])
    assert not table.has_differences
    assert "minus" not in markdown(table, "title")


def test_files_hold_every_number(tmp_path: Path, runs: list[SettingRun]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    table = build_table(runs, failed=[FailedRun("e <b>", 0, "no\nluck")])
    write_tables(out, "sweep", table, title="reptk sweep x|y", facts={"command": "c"}, notes=["of <b>"])
    lines = list(csv.DictReader(io.StringIO((out / "sweep.csv").read_text())))
    assert [line["setting"] for line in lines] == ["b", "a", "c", "e <b>"]
    estimate = table.rows[1].metrics["map@r"]
    assert float(lines[1]["map@r"]) == estimate.mean
    assert float(lines[1]["map@r low"]) == estimate.low
    assert float(lines[1]["knn@20 difference high"]) == table.rows[1].differences["knn@20"].high
    assert lines[0]["knn@20 difference"] == ""
    assert lines[1]["compared_with"] == "b"
    by_run = list(csv.DictReader(io.StringIO((out / "runs.csv").read_text())))
    assert len(by_run) == 10
    assert [float(line["knn@20"]) for line in by_run if line["setting"] == "b"] == VALUES["b"]
    content = json.loads((out / "sweep.json").read_text())
    assert [row["metrics"]["mrr"]["value"] for row in content["settings"][:3]] == [0.5, 0.5, 0.5]
    assert content["failed"] == {"e <b> seed=0": "no\nluck"}
    assert content["command"] == "c"
    assert set(content["intervals"]) == {"seeds", "paired seeds", "equal values"}
    page = (out / "sweep.md").read_text()
    assert "# reptk sweep x\\|y" in page
    assert "e &lt;b> seed=0: no\\nluck" in page
    assert "- note: of &lt;b>" in page
    assert len({line.count("|") for line in page.splitlines() if line.startswith("|")}) == 1


def test_the_printed_table(table: ComparisonTable, capsys: pytest.CaptureFixture) -> None:
    print_table(table)
    lines = capsys.readouterr().out.splitlines()
    assert "minus the best" in lines[0]
    assert lines[1].split()[:3] == ["b", "3", "88.3"]
    assert lines[2].split()[:3] == ["a", "3", "81.0"]
    assert any("may be beyond it by chance" in line for line in lines)
