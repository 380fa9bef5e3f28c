"""reptk sweep: what it runs, what it goes on with, and where it ends."""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from killed_processes import fork
from reptk.cli import main
from reptk.core.console import Logger
from reptk.core.stop_signals import Stopped
from reptk.sweep.grid import load_cells, parse_grid
from reptk.sweep.process_pool import Job, run_jobs
from reptk.sweep.sweep_folder import folder_name
from reptk.training.loop import train
from reptk.training.run_status import read_status
from sweep_runs import TINY_TOML, write_fake_process, write_run

pytestmark = pytest.mark.usefixtures("one_thread")

GRID = ["tiny.toml", "loss.temperature=0.1,0.5", "seed=0..1"]


@pytest.fixture(autouse=True)
def _working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    Path("tiny.toml").write_text(TINY_TOML)


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of runs that are copied in place of being trained."""
    folder = tmp_path / "prepared"
    folder.mkdir()
    monkeypatch.setattr(sys, "executable", str(write_fake_process(folder)))
    return folder


def prepare(prepared: Path, arguments: list[str]) -> None:
    """Prepare all runs of a sweep."""
    for number, cell in enumerate(load_cells(parse_grid(arguments[0], arguments[1:]))):
        folder = prepared / folder_name(cell.label)
        if not folder.exists():
            write_run(folder, {"knn@5": 0.5 + number / 100, "map@r": 0.25}, cell.recipe)


def started(prepared: Path) -> list[str]:
    path = prepared / "started.txt"
    if not path.exists():
        return []
    return [line.split()[0] for line in path.read_text().splitlines()]


def sweep(*options: str, arguments: list[str] = GRID) -> int:
    return main(["sweep", *arguments, "--out", "out", "--no-report", *options])


def tables() -> dict[str, str]:
    names = ("sweep.csv", "sweep.md", "sweep.json", "runs.csv")
    return {name: Path("out", name).read_text() for name in names if Path("out", name).exists()}


def test_a_sweep_ends_in_a_table(prepared: Path, capsys: pytest.CaptureFixture) -> None:
    prepare(prepared, GRID)
    assert sweep() == 0
    assert len(started(prepared)) == 4
    printed = capsys.readouterr().out
    assert "4 runs: 2 settings x 2 seeds  ->  out" in printed
    assert "[4/4]" in printed
    assert set(tables()) == {"sweep.csv", "sweep.md", "sweep.json", "runs.csv"}
    settings = json.loads(Path("out/sweep.json").read_text())["settings"]
    assert [(row["setting"], row["seeds"]) for row in settings] == [
        ("loss.temperature=0.5", [0, 1]),
        ("loss.temperature=0.1", [0, 1]),
    ]
    assert settings[0]["metrics"]["knn@5"]["value"] == pytest.approx(0.525)


def test_the_recorded_command_is_the_one_that_was_typed(prepared: Path) -> None:
    options = ["--random", "2", "--random-seed", "3", "--metric", "map@r", "--against", "first"]
    prepare(prepared, GRID)
    assert sweep(*options) == 0
    command = json.loads(Path("out/sweep.json").read_text())["command"]
    assert command == " ".join(["reptk sweep", *GRID, "--out out --no-report", *options])
    assert Path("out/sweep.md").read_text().startswith(f"# {command}\n")


def test_a_first_setting_without_the_metric_costs_no_table(prepared: Path, capsys: pytest.CaptureFixture) -> None:
    for cell in load_cells(parse_grid(GRID[0], GRID[1:])):
        metrics = {"knn@5": 0.5}
        if dict(cell.setting) == {"loss.temperature": "0.1"}:
            metrics = {"map@r": 0.25}
        write_run(prepared / folder_name(cell.label), metrics, cell.recipe)
    assert sweep("--metric", "knn@5", "--against", "first") == 2
    error = capsys.readouterr().err
    assert "--against first: the first setting, loss.temperature=0.1, has no knn@5" in error
    assert "compare with the best setting" in error
    assert len(tables()) == 4


def test_finished_runs_are_not_run_again(prepared: Path, capsys: pytest.CaptureFixture) -> None:
    prepare(prepared, GRID)
    assert sweep() == 0
    before = tables()
    capsys.readouterr()
    assert sweep() == 0
    assert "4 of them finished already" in capsys.readouterr().out
    assert len(started(prepared)) == 4
    assert tables() == before


def test_added_values_are_run(prepared: Path, capsys: pytest.CaptureFixture) -> None:
    prepare(prepared, GRID)
    assert sweep() == 0
    capsys.readouterr()
    larger = ["tiny.toml", "loss.temperature=0.1,0.3,0.5", "seed=0..2"]
    prepare(prepared, larger)
    assert sweep(arguments=larger) == 0
    assert len(started(prepared)) == 9
    assert "5 runs new in this sweep, which had others" in capsys.readouterr().out
    assert {row["n"] for row in json.loads(Path("out/sweep.json").read_text())["settings"]} == {3}


def stop_after(num_runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop the next sweep as by a signal when that many runs have ended."""

    def run_some(jobs: list[Job], *args, **options) -> None:
        run_jobs(jobs[:num_runs], *args, **options)
        raise Stopped(signal.SIGTERM)

    monkeypatch.setattr("reptk.sweep.run_sweep.run_jobs", run_some)


def test_runs_that_a_stopped_sweep_had_no_time_for_are_not_new(
    prepared: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(prepared, GRID)
    stop_after(1, monkeypatch)
    assert sweep() == 143
    capsys.readouterr()
    # Another spelling and order of the values does not matter.
    assert sweep("--dry-run", arguments=["tiny.toml", "seed=1,0", "loss.temperature=0.50,0.1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == ["1 of them finished already", "3 of them still to run"]
    assert [line.split("  ")[-1] for line in lines[3:]] == ["still to run", "still to run", "still to run", "finished"]
    # A run that has begun goes on; values that no command has named are new.
    (Path("out/runs") / "loss.temperature=0.5,seed=1").mkdir(parents=True)
    recipe = (prepared / "loss.temperature=0.5,seed=1" / "recipe.toml").read_text()
    Path("out/runs/loss.temperature=0.5,seed=1/recipe.toml").write_text(recipe)
    assert sweep("--dry-run", arguments=["tiny.toml", "loss.temperature=0.1,0.5", "seed=0..2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:4] == [
        "1 of them finished already",
        "3 of them still to run (started before: 1)",
        "2 runs new in this sweep, which had others",
    ]
    assert [line.split()[-1] for line in lines[4:]].count("new") == 2


def test_a_sweep_that_was_stopped_before_its_first_run_is_not_new(
    prepared: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(prepared, GRID)
    stop_after(0, monkeypatch)
    assert sweep() == 143
    assert "still to run" not in capsys.readouterr().out
    assert sweep("--dry-run") == 0
    assert capsys.readouterr().out.splitlines()[1] == "4 of them still to run"


@pytest.mark.parametrize("content", [None, "", "[]", '{"runs": 3}'])
def test_without_a_plan_no_run_is_called_new(
    content: str | None, prepared: Path, capsys: pytest.CaptureFixture
) -> None:
    prepare(prepared, GRID)
    assert sweep() == 0
    capsys.readouterr()
    Path("out/planned.json").unlink()
    if content is not None:
        Path("out/planned.json").write_text(content)
    assert sweep("--dry-run", arguments=["tiny.toml", "loss.temperature=0.1,0.5", "seed=0..2"]) == 0
    printed = capsys.readouterr().out
    assert "2 of them still to run" in printed
    assert "new" not in printed


def test_a_dry_run_changes_nothing(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert sweep("--dry-run") == 0
    assert sorted(tmp_path.rglob("*")) == before
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "4 runs: 2 settings x 2 seeds  ->  out"
    assert lines[1:] == [f"  loss.temperature={value} seed={seed}  new" for value in ("0.1", "0.5") for seed in (0, 1)]


def test_a_failing_run_is_recorded_and_the_others_go_on(prepared: Path, capsys: pytest.CaptureFixture) -> None:
    prepare(prepared, GRID)
    failure = prepared / "loss.temperature=0.1,seed=1.failure"
    failure.write_text("warning: old\nerror: there is no folder gone")
    assert sweep() == 1
    output = capsys.readouterr()
    assert output.err.startswith("error: 1 of 4 runs failed")
    assert len(started(prepared)) == 4
    content = json.loads(Path("out/sweep.json").read_text())
    assert content["failed"] == {"loss.temperature=0.1 seed=1": "there is no folder gone"}
    assert {row["setting"]: row["n"] for row in content["settings"]} == {
        "loss.temperature=0.5": 2,
        "loss.temperature=0.1": 1,
    }
    # Where it is looked for: in the printed table, and in each file.
    assert "1 of 2" in output.out
    content = tables()
    assert "| loss.temperature=0.1 | 1 of 2 |" in content["sweep.md"]
    assert "loss.temperature=0.1,1,1,0," in content["sweep.csv"]
    assert content["runs.csv"].splitlines()[-1] == "loss.temperature=0.1,1,,,,,there is no folder gone"
    failure.unlink()
    assert sweep() == 0
    assert started(prepared)[4:] == ["loss.temperature=0.1,seed=1"]
    assert json.loads(Path("out/sweep.json").read_text())["failed"] == {}


def test_the_page_of_the_only_setting_with_a_result(prepared: Path, capsys: pytest.CaptureFixture) -> None:
    prepare(prepared, GRID)
    for seed in (0, 1):
        (prepared / f"loss.temperature=0.5,seed={seed}.failure").write_text("error: no luck")
    assert main(["sweep", *GRID, "--out", "out"]) == 1
    printed = capsys.readouterr().out
    assert "report   out/report.html\n" in printed
    page = Path("out/report.html").read_text()
    assert "Only loss.temperature=0.1 has a result, so there is nothing to compare" in page
    # Both of its seeds, and the setting that failed.
    for name in ("loss.temperature=0.1 seed=0", "loss.temperature=0.1 seed=1", "0 of 2", "no luck"):
        assert name in page


def test_a_sweep_of_which_all_runs_fail_has_no_table(prepared: Path, capsys: pytest.CaptureFixture) -> None:
    prepare(prepared, GRID)
    for seed in (0, 1):
        for value in ("0.1", "0.5"):
            (prepared / f"loss.temperature={value},seed={seed}.failure").write_text("error: no luck")
    assert sweep() == 1
    assert capsys.readouterr().err.count("no luck") == 4
    assert tables() == {}


def test_damaged_results_are_named(prepared: Path, capsys: pytest.CaptureFixture) -> None:
    prepare(prepared, GRID)
    assert sweep() == 0
    path = Path("out/runs/loss.temperature=0.1,seed=0/results.json")
    path.write_text('{"metrics": 3}')
    assert sweep() == 1
    assert f"{path} is damaged" in capsys.readouterr().err
    assert len(started(prepared)) == 4


def test_a_finished_run_without_results_is_run_again(prepared: Path) -> None:
    prepare(prepared, GRID)
    assert sweep() == 0
    Path("out/runs/loss.temperature=0.1,seed=0/results.json").unlink()
    assert sweep() == 0
    assert started(prepared)[4:] == ["loss.temperature=0.1,seed=0"]


def test_an_unknown_metric_costs_no_table(prepared: Path, capsys: pytest.CaptureFixture) -> None:
    prepare(prepared, GRID)
    assert sweep("--metric", "knn@6") == 2
    error = capsys.readouterr().err
    assert "no run has the metric 'knn@6'. Nearest: knn@5." in error
    assert (
        "The tables are sorted by knn@5 and compare with the best setting; the same command with another --metric"
        in error
    )
    assert json.loads(Path("out/sweep.json").read_text())["headline"] == "knn@5"
    # With a finished run, it is refused before anything is trained.
    larger = ["tiny.toml", "loss.temperature=0.1,0.5", "seed=0..2"]
    prepare(prepared, larger)
    assert sweep("--metric", "knn@6", arguments=larger) == 2
    assert "no run has the metric 'knn@6'" in capsys.readouterr().err
    assert len(started(prepared)) == 4
    assert sweep("--metric", "map@r", arguments=larger) == 0
    assert json.loads(Path("out/sweep.json").read_text())["headline"] == "map@r"


@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_a_log_that_is_no_file_is_refused(kind: str, prepared: Path, capsys: pytest.CaptureFixture) -> None:
    prepare(prepared, GRID)
    log = Path("out/logs/loss.temperature=0.1,seed=1.log")
    log.parent.mkdir(parents=True)
    if kind == "pipe":
        os.mkfifo(log)
    else:
        Path("precious").write_text("mine")
        log.symlink_to(Path("precious").absolute())
    assert sweep() == 4
    assert str(log) in capsys.readouterr().err
    assert started(prepared) == []
    if kind == "link":
        assert Path("precious").read_text() == "mine"


def test_jobs_share_the_cpus(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(prepared, GRID)
    monkeypatch.setattr("reptk.sweep.run_sweep.num_cpus", lambda: 8)
    assert sweep("--jobs", "4") == 0
    assert [line.split()[1] for line in (prepared / "started.txt").read_text().splitlines()] == ["2"] * 4
    shutil.rmtree("out")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert sweep("--jobs", "4") == 0
    assert (prepared / "started.txt").read_text().splitlines()[-1].split()[1] == "3"


def test_gpus_are_named_as_torch_counts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from reptk.sweep.run_sweep import slots_of

    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("reptk.sweep.run_sweep.num_cpus", lambda: 8)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert slots_of(None, "0,1") == [
        {"CUDA_VISIBLE_DEVICES": "0", "OMP_NUM_THREADS": "4"},
        {"CUDA_VISIBLE_DEVICES": "1", "OMP_NUM_THREADS": "4"},
    ]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,5")
    assert slots_of(None, "1") == [{"CUDA_VISIBLE_DEVICES": "5"}]


def test_each_gpu_has_a_run_at_a_time(
    prepared: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("tiny.toml").write_text(TINY_TOML.replace(', device = "cpu"', ""))
    arguments = ["tiny.toml", "loss.temperature=0.1,0.5", "seed=0..2"]
    prepare(prepared, arguments)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    # A process fails if another one uses its GPU.
    assert sweep("--gpus", "1,3", arguments=arguments) == 0
    gpus = (prepared / "gpus.txt").read_text().splitlines()
    assert len(gpus) == 6
    assert set(gpus) == {"1", "3"}
    assert "6 runs: 2 settings x 3 seeds" in capsys.readouterr().out


def test_one_gpu_is_no_place_for_two_runs(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes of the test before notice it if runs share a GPU."""
    prepare(prepared, GRID)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert sweep("--jobs", "2") == 1
    assert "two runs at a time on 7" in Path("out/sweep.json").read_text()


def test_a_gpu_that_does_not_exist(
    prepared: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("tiny.toml").write_text(TINY_TOML.replace(', device = "cpu"', ""))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert sweep("--gpus", "0,1") == 4
    assert capsys.readouterr().err == "error: --gpus 0,1: there is no GPU 1; torch finds 1\n"
    assert not Path("out").exists()


def test_gpus_are_refused_if_any_recipe_fixes_its_device(
    prepared: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("free.toml").write_text(TINY_TOML.replace(', device = "cpu"', ""))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert sweep("--gpus", "0", arguments=["free.toml,tiny.toml", "seed=0"]) == 2
    assert "train.device=cpu fixes it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--gpus", "0"], 4, "there is no GPU 0"),
        (["--gpus", "a"], 2, "--gpus takes different numbers"),
        (["--gpus", "0", "--jobs", "2"], 2, "not allowed with"),
        (["--jobs", "0"], 2, "at least 1"),
        (["--gpus", "0", "train.device=cpu"], 2, "train.device=cpu fixes it"),
        (["loss.temprature=1,2"], 2, "did you mean 'temperature'"),
    ],
)
def test_refused_before_a_run_is_started(
    prepared: Path, options: list[str], code: int, message: str, capsys: pytest.CaptureFixture
) -> None:
    Path("tiny.toml").write_text(TINY_TOML.replace(', device = "cpu"', ""))
    assert sweep(*options) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("error: ") == 1
    assert not Path("out").exists()


def test_several_values_in_a_single_run_point_to_sweep(capsys: pytest.CaptureFixture) -> None:
    assert main(["recipe", "tiny.toml", "seed=0,1", "--check"]) == 2
    error = capsys.readouterr().err
    assert "seed  must be a valid integer" in error
    assert error.endswith("reptk sweep tiny.toml seed=0,1\n")


def test_two_processes_do_not_run_the_same_sweep(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from reptk.training.run_lock import RunLock

    monkeypatch.setattr("reptk.training.run_lock.POLL_SECONDS", 0.01)
    prepare(prepared, GRID)
    Path("out").mkdir()
    lock = RunLock(Path("out"))
    lock.acquire(lambda text: None)
    child = fork()
    if child == 0:
        # A lock belongs to the opened file, so this process can hold it and be refused.
        code = 99
        try:
            monkeypatch.setattr(RunLock.acquire, "__defaults__", (0.0,))
            code = sweep()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4
    lock.release()
    assert started(prepared) == []


@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_ends_in_the_same_table(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["tiny.toml", "seed=0..1", "train.epochs=8", "train.checkpoint_every_steps=4"]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as in this process, for the same bits
    cells = load_cells(parse_grid(arguments[0], arguments[1:]))
    first, second = Path("out/runs/seed=0"), Path("out/runs/seed=1")
    # A run that is there is one of the sweep, whoever has started it.
    train(cells[0].recipe, first, logger=Logger(prints=False))
    child = fork()
    if child == 0:
        try:
            sweep(arguments=arguments)
        finally:
            os._exit(1)
    try:
        wait_for(lambda: read_status(second).get("step", 0) > 0)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    # The run that was trained at that moment has lost its parent, and saves itself.
    wait_for(lambda: read_status(second)["status"] == "preempted")
    before = (first / "results.json").stat().st_mtime_ns
    assert sweep(arguments=arguments) == 0
    assert (first / "results.json").stat().st_mtime_ns == before
    assert "resumed after step" in Path("out/logs/seed=1.log").read_text()
    runs = json.loads(Path("out/sweep.json").read_text())["settings"][0]["runs"]
    assert [run["seed"] for run in runs] == [0, 1]
    assert runs[1]["metrics"] == dict(train(cells[1].recipe, "alone", logger=Logger(prints=False)))


def wait_for(condition, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_signal_is_no_failure(prepared: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(prepared, GRID)

    def stop(*args, **options) -> None:
        raise Stopped(signal.SIGTERM)

    monkeypatch.setattr("reptk.sweep.run_sweep.run_jobs", stop)
    assert sweep() == 143
    assert "stopped; 0 of 4 runs finished. The same command resumes the others" in capsys.readouterr().out
    assert tables() == {}
