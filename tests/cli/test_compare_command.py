"""reptk compare: a table of runs at hand."""

import csv
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from reptk.cli import main
from sweep_runs import tiny, write_run

VALUES = {"0.1": [0.80, 0.82, 0.81], "0.5": [0.86, 0.91, 0.88]}


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    folders = []
    for temperature, values in VALUES.items():
        for seed, value in enumerate(values):
            recipe = tiny(f"loss.temperature={temperature}", f"seed={seed}")
            folders.append(str(write_run(Path(f"runs/{temperature}-{seed}"), {"knn@5": value}, recipe)))
    return folders


def test_the_table_equals_scipy_by_hand(runs: list[str], capsys: pytest.CaptureFixture) -> None:
    assert main(["compare", *runs, "--out", "table"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("6 runs, 2 settings\nwhat differs:\n  loss.temperature: 0.1, 0.5\n")
    with Path("table/comparison.csv").open() as file:
        best, other = list(csv.DictReader(file))
    assert (best["setting"], best["n"], best["seeds"]) == ("loss.temperature=0.5", "3", "0 1 2")
    low, high = stats.t.interval(0.95, 2, loc=np.mean(VALUES["0.5"]), scale=stats.sem(VALUES["0.5"]))
    assert [float(best[key]) for key in ("knn@5", "knn@5 low", "knn@5 high")] == pytest.approx(
        [np.mean(VALUES["0.5"]), low, high]
    )
    expected = stats.ttest_rel(VALUES["0.1"], VALUES["0.5"]).confidence_interval(0.95)
    difference = [float(other[f"knn@5 difference {end}"]) for end in ("low", "high")]
    assert difference == pytest.approx([expected.low, expected.high])
    assert f"[{100 * expected.low:+.1f}, {100 * expected.high:+.1f}]" in printed


def test_a_folder_of_runs(runs: list[str], capsys: pytest.CaptureFixture) -> None:
    assert main(["compare", *runs]) == 0
    named = capsys.readouterr().out
    assert main(["compare", "runs"]) == 0
    assert capsys.readouterr().out == named


def test_the_recorded_command_is_the_one_that_was_typed(runs: list[str]) -> None:
    options = [
        "--metric",
        "knn@5",
        "--against",
        "first",
        "--out",
        "my table",
        "--plugin",
        "reptk.plugins.dcl",
        "--trust",
    ]
    assert main(["compare", "runs", *options]) == 0
    command = json.loads(Path("my table/comparison.json").read_text())["command"]
    assert shlex.split(command) == ["reptk", "compare", "runs", *options]


def test_tables_are_not_overwritten(runs: list[str], capsys: pytest.CaptureFixture) -> None:
    assert main(["compare", *runs, "--out", "table"]) == 0
    assert main(["compare", *runs, "--out", "table"]) == 2
    assert "comparison.csv exists" in capsys.readouterr().err
    assert main(["compare", *runs, "--out", "table", "--force"]) == 0


def test_one_run(runs: list[str], capsys: pytest.CaptureFixture) -> None:
    assert main(["compare", runs[0]]) == 0
    printed = capsys.readouterr().out
    assert "[70.0, 90.0]" in printed
    assert "the intervals are over the queries and say nothing about other seeds" in printed


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["gone"], 2, "no such folder"),
        ([], 2, "run"),
        (["runs", "--metric", "knn@50"], 2, "Nearest: knn@5"),
        (["runs", "--out", "runs/0.1-0/recipe.toml"], 4, "it is no folder"),
        (["runs", "--report"], 2, "--report needs --out"),
    ],
)
def test_mistakes(
    runs: list[str], arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture
) -> None:
    assert main(["compare", *arguments]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("error: ") == 1
