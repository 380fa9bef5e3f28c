"""reptk verify: a run against the result that its recipe records."""

import json
from pathlib import Path

import pytest

from reptk.cli import main
from reptk.config import load
from reptk.config.registry import EVALUATORS
from reptk.core.metric_names import is_share
from reptk.sweep.expected_result import METRIC_FAMILIES, check_metric
from sweep_runs import TINY_TOML, write_run

pytestmark = pytest.mark.usefixtures("one_thread")

EXPECT = """
[expect]
metric = "knn@5"
value = {value}
epochs = {epochs}
hardware = "2 CPU cores"
versions = "torch 2"
commit = "0123456789ab"
"""


@pytest.fixture(autouse=True)
def _working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write_recipe(value: float, epochs: int = 2, extra: str = "") -> None:
    Path("tiny.toml").write_text(TINY_TOML + EXPECT.format(value=value, epochs=epochs) + extra)


def write_measured(value: float) -> None:
    write_run(Path("run"), {"knn@5": value}, load("tiny.toml"))


@pytest.mark.parametrize(
    ("recorded", "options", "code"),
    [
        (0.5, [], 0),
        (0.53, [], 0),
        (0.47, [], 0),
        # Within the interval over queries, 0.4 to 0.6, which decides nothing.
        (0.531, [], 1),
        (0.469, [], 1),
        (0.61, ["--tolerance", "0.12"], 0),
        (0.61, ["--tolerance", "0.1"], 1),
        # Where and how it is run changes no result.
        (0.5, ["train.workers=1"], 0),
        (0.61, ["train.workers=1"], 1),
        (0.5, ["trackers.tensorboard.folder=x"], 0),
    ],
)
def test_the_tolerance_decides(recorded: float, options: list[str], code: int, capsys: pytest.CaptureFixture) -> None:
    write_recipe(recorded)
    write_measured(0.5)
    assert main(["verify", "tiny.toml", "--run", "run", *options]) == code
    printed = capsys.readouterr().out
    assert ("DOES NOT AGREE" in printed) == (code == 1)
    assert f"recorded {100 * recorded:6.2f}" in printed
    assert "[40.00, 60.00]" in printed


def test_the_tolerance_holds_without_an_interval(capsys: pytest.CaptureFixture) -> None:
    write_recipe(0.53)
    write_measured(0.5)
    results = json.loads(Path("run/results.json").read_text())
    Path("run/results.json").write_text(json.dumps({**results, "intervals": {}}))
    assert main(["verify", "tiny.toml", "--run", "run"]) == 0
    write_recipe(0.54)
    assert main(["verify", "tiny.toml", "--run", "run"]) == 1


def test_a_recipe_may_record_the_tolerance(capsys: pytest.CaptureFixture) -> None:
    write_recipe(0.51, extra="tolerance = 0.01\n")
    write_measured(0.5)
    assert main(["verify", "tiny.toml", "--run", "run"]) == 0
    assert "rule: at most 1 points of difference" in capsys.readouterr().out
    write_recipe(0.52, extra="tolerance = 0.01\n")
    assert main(["verify", "tiny.toml", "--run", "run"]) == 1
    assert main(["verify", "tiny.toml", "--run", "run", "--tolerance", "0.02"]) == 0


@pytest.mark.parametrize(("pixels", "code"), [(0.305, 0), (0.3051, 1), (0.2949, 1)])
def test_baselines_are_not_trained_and_have_a_small_tolerance(pixels: float, code: int) -> None:
    write_recipe(0.5, extra=f"pixels = {pixels}\n")
    write_measured(0.5)
    results = json.loads(Path("run/results.json").read_text())
    results["metrics"] = {"raw pixels": {"knn@5": 0.3}, **results["metrics"]}
    results["intervals"]["raw pixels"] = {"knn@5": [0.2, 0.4]}
    Path("run/results.json").write_text(json.dumps(results))
    assert main(["verify", "tiny.toml", "--run", "run", "--tolerance", "0.1"]) == code


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("linear", "its evaluators are [eval.knn]. Add the one that computes it"),
        ("knn@9", "eval.knn.k has no 9. Add it"),
        ("kmn@5", "its evaluators are [eval.knn]"),
    ],
)
def test_a_metric_that_the_run_would_lack_is_refused_before_training(
    metric: str, message: str, capsys: pytest.CaptureFixture
) -> None:
    write_recipe(0.5)
    Path("tiny.toml").write_text(Path("tiny.toml").read_text().replace('"knn@5"', f'"{metric}"'))
    assert main(["verify", "tiny.toml"]) == 2
    error = capsys.readouterr().err
    assert f"expect.metric is {metric}, which a run of tiny would not have: {message}" in error
    assert not Path("runs").exists()


@pytest.mark.parametrize("metric", ["knn@1", "map@r", "recall@5", "mrr", "accuracy", "knn_majority@5", "precision@10"])
def test_metrics_of_the_evaluators_are_accepted(metric: str) -> None:
    write_recipe(0.5)
    Path("tiny.toml").write_text(Path("tiny.toml").read_text().replace('"knn@5"', f'"{metric}"'))
    recipe = load("tiny.toml")
    check_metric(recipe.expect, recipe)


def test_the_families_of_metrics_are_those_of_all_evaluators() -> None:
    assert set(METRIC_FAMILIES) == {"accuracy", "few_shot", "knn", "linear", "linear_stage", "view_retrieval"}
    assert set(METRIC_FAMILIES) <= set(EVALUATORS.names())
    for families in METRIC_FAMILIES.values():
        assert all(is_share("map@r" if family == "map" else family) for family in families)


def test_recorded_baselines_are_compared_as_well(capsys: pytest.CaptureFixture) -> None:
    write_recipe(0.5, extra="pixels = 0.9\nuntrained = 0.2\n")
    write_measured(0.5)
    assert main(["verify", "tiny.toml", "--run", "run"]) == 0, "the run has none"
    results = json.loads(Path("run/results.json").read_text())
    results["metrics"] = {"raw pixels": {"knn@5": 0.3}, "untrained": {"knn@5": 0.2}, **results["metrics"]}
    Path("run/results.json").write_text(json.dumps(results))
    assert main(["verify", "tiny.toml", "--run", "run"]) == 1
    lines = [
        line.split() for line in capsys.readouterr().out.splitlines() if "recorded " in line and "measured" in line
    ]
    assert [line[-1] for line in lines[1:]] == ["agrees", "agrees", "AGREE"]


@pytest.mark.slow
def test_the_recipe_is_trained(capsys: pytest.CaptureFixture) -> None:
    write_recipe(0.5)
    assert main(["verify", "tiny.toml", "--tolerance", "1"]) == 0
    assert "run: runs/verify/tiny/1" in capsys.readouterr().out
    measured = json.loads(Path("runs/verify/tiny/1/results.json").read_text())["metrics"]["trained"]["knn@5"]
    write_recipe(measured)
    assert main(["verify", "tiny.toml", "--run", "runs/verify/tiny/1", "--tolerance", "0"]) == 0
    # A folder that is named goes on, here to nothing.
    assert main(["verify", "tiny.toml", "--out", "runs/verify/tiny/1"]) == 0
    assert "already complete" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny.toml", "train.epochs=3"], "the recorded result is that of the recipe as it is"),
        (["tiny.toml", "--run", "gone"], "no run in gone: there is no folder gone"),
        (["tiny.toml", "--run", "run", "--out", "x"], "not allowed with"),
        (["tiny.toml", "--tolerance", "5"], "between 0 and 1"),
        (["tiny.tom"], "no recipe"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    write_recipe(0.5)
    write_measured(0.5)
    assert main(["verify", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("error: ") == 1


def test_a_recipe_or_a_run_that_cannot_be_verified(capsys: pytest.CaptureFixture) -> None:
    Path("tiny.toml").write_text(TINY_TOML)
    assert main(["verify", "tiny.toml"]) == 2
    assert "tiny.toml records no result to compare with: it has no [expect] table" in capsys.readouterr().err
    write_recipe(0.5, epochs=7)
    assert main(["verify", "tiny.toml"]) == 2
    assert "records the result of 7 epochs, and trains for 2" in capsys.readouterr().err
    write_recipe(0.5)
    write_measured(0.5)
    Path("run/status.json").write_text('{"status": "preempted"}')
    assert main(["verify", "tiny.toml", "--run", "run"]) == 2
    assert "run is not finished (preempted)" in capsys.readouterr().err
    Path("run/status.json").write_text('{"status": "finished"}')
    Path("tiny.toml").write_text(Path("tiny.toml").read_text().replace("1e-3", "1e-2"))
    assert main(["verify", "tiny.toml", "--run", "run"]) == 2
    assert "optim.lr" in capsys.readouterr().err
    write_recipe(0.5)
    # What a resumed run may change is another result.
    for pair in ("train.final_weights=last", "train.epochs=3"):
        recorded = write_run(Path(pair), {"knn@5": 0.5}, load("tiny.toml", [pair]))
        assert main(["verify", "tiny.toml", "--run", str(recorded)]) == 2
        assert f"{pair} is a run of another recipe:\n  {pair.partition('=')[0]} " in capsys.readouterr().err
    Path("tiny.toml").write_text(Path("tiny.toml").read_text().replace('"knn@5"', '"knn@9"'))
    assert main(["verify", "tiny.toml", "--run", "run"]) == 2
    assert "the recorded result is of knn@9, which the run lacks; it has knn@5" in capsys.readouterr().err


def test_the_command_that_resumes_an_unfinished_run_can_be_typed(capsys: pytest.CaptureFixture) -> None:
    write_recipe(0.5)
    recipe = load("tiny.toml").model_copy(update={"plugins": ("plugins/my_loss.py",)})
    folder = write_run(Path("my run"), {"knn@5": 0.5}, recipe)
    (folder / "status.json").write_text('{"status": "preempted"}')
    assert main(["verify", "tiny.toml", "--run", "my run"]) == 2
    assert "to resume it: python -m reptk.recipe 'my run' --resume --trust\n" in capsys.readouterr().err


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    write_recipe(0.5)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["verify", "tiny.toml"]) == 2
    error = capsys.readouterr().err
    assert "torchrun or srun has started 2: train with torchrun ... -m reptk.recipe tiny.toml" in error
    assert error.count("error: ") == 1
    assert not Path("runs").exists()
