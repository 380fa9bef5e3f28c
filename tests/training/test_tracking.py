"""Whole runs with trackers: a plugin that records, TensorBoard's event files and W&B's offline files."""

import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from interrupted_runs import CalledBefore, send
from reptk import TRACKERS
from reptk.core.console import Logger
from reptk.core.errors import UsageError
from reptk.core.stop_signals import Stopped
from reptk.recipe import main, smoke_version
from reptk.trackers import TrackedRun, feed, tensorboard
from reptk.training import loop, tracking
from reptk.training.loop import train
from tiny_runs import are_equal, exported_weights, metric_rows, result_metrics, run_silently, tiny

RECORDING = ("train.trackers=recording",)
TWO_EPOCHS_TO_STEP_4 = 5
"""Call of train_step before which a run is stopped: in the second epoch, after a checkpoint of step 3."""

Runs = list[dict[str, Any]]


@pytest.fixture
def tracked_runs(restored_registries: None) -> Runs:
    """What the tracker "recording" was called with, a dictionary for each process of a run."""
    runs: Runs = []

    @TRACKERS.register("recording")
    class Recording:
        def __init__(self, fails_in: Literal["", "init", "start", "log"] = "", level: int = 1) -> None:
            if fails_in == "init":
                raise ValueError("level is not available")
            self.fails_in = fails_in

        def start(self, run: TrackedRun) -> dict[str, str]:
            if self.fails_in == "start":
                raise ConnectionError("no route to host")
            runs.append({"run": run, "rows": [], "end": None})
            return {"id": run.state.get("id", str(len(runs)))}

        def log(self, number: int, row: Mapping[str, float]) -> None:
            if self.fails_in == "log":
                raise ConnectionError("no route to host")
            runs[-1]["rows"].append((number, row))

        def finish(self, end: str, summary: Mapping[str, float], files: Sequence[Path]) -> None:
            runs[-1] |= {"end": end, "summary": summary, "files": files}

    return runs


def stop_in_the_second_epoch(recipe: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", CalledBefore(loop.train_step, TWO_EPOCHS_TO_STEP_4, send("SIGTERM")))
        with pytest.raises(Stopped):
            run_silently(recipe, folder)


def test_a_tracker_gets_what_metrics_jsonl_and_results_json_get(
    tracked_runs: Runs, reference_run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    run_silently(tiny(*RECORDING), folder)
    [tracked] = tracked_runs
    assert tracked["rows"] == list(enumerate(metric_rows(folder), start=1))
    assert tracked["run"].name == "tiny"
    assert tracked["run"].config["loss"]["k1"] == 10.0
    assert tracked["end"] == "finished"
    assert tracked["files"] == [folder / "report.html"]
    metrics = result_metrics(folder)
    assert tracked["summary"]["trained/knn@5"] == metrics["trained"]["knn@5"]
    assert len(tracked["summary"]) == sum(map(len, metrics.values()))
    assert are_equal(exported_weights(reference_run), exported_weights(folder))


def test_a_resumed_run_continues_the_curve(tracked_runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    stop_in_the_second_epoch(tiny(*RECORDING), folder, monkeypatch)
    # Trackers are a matter of execution: they may change, e.g. have another argument.
    run_silently(tiny(*RECORDING, "trackers.recording.level=2"), folder)
    first, second = tracked_runs
    assert first["end"] == "stopped"
    assert second["run"].state == {"id": "1"}
    assert [*first["rows"], *second["rows"]] == list(enumerate(metric_rows(folder), start=1))


@pytest.mark.parametrize("fails_in", ["start", "log"])
def test_a_tracker_that_fails_is_a_line_and_changes_nothing(
    fails_in: str, tracked_runs: Runs, reference_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    recipe = tiny(*RECORDING, f"trackers.recording.fails_in={fails_in}")
    train(recipe, tmp_path / "run", logger=Logger(prints=True))
    line = "tracker 'recording' has failed: ConnectionError: no route to host. The run continues without it"
    assert capsys.readouterr().out.count(line) == 1
    assert are_equal(exported_weights(reference_run), exported_weights(tmp_path / "run"))


def test_a_run_that_fails_says_so_to_its_trackers(
    tracked_runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise UsageError("for a test")

    monkeypatch.setattr(loop, "train_step", fail)
    with pytest.raises(UsageError, match="for a test"):
        run_silently(tiny(*RECORDING), tmp_path / "run")
    assert tracked_runs[0]["end"] == "failed"
    assert tracked_runs[0]["summary"] == {}


def test_a_tracker_that_refuses_its_arguments_stops_the_run_before_it_has_a_folder(
    tracked_runs: Runs, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="tracker 'recording': level is not available"):
        run_silently(tiny(*RECORDING, "trackers.recording.fails_in=init"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_ranks_other_than_0_track_nothing(tracked_runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trackers, _ = tracking.build_trackers(tiny(*RECORDING))
    # With the defaults of what the plugin leaves out.
    assert trackers["recording"].forget(0) is False
    assert trackers["recording"].accepts_rows_again is False
    monkeypatch.setattr(tracking.distributed, "is_main", lambda: False)
    with tracking.tracked(trackers, tmp_path, Logger(prints=False)) as tracker_feed:
        tracking.start_tracking(tracker_feed, tiny(*RECORDING), tmp_path, Logger(prints=False))
    assert tracked_runs == []


def test_smoke_tests_are_not_tracked(tracked_runs: Runs) -> None:
    assert smoke_version(tiny(*RECORDING)).active_trackers == {}


@pytest.mark.parametrize("package", ["tensorboard", "wandb", "trackio", "mlflow"])
def test_a_package_that_is_not_installed_is_a_note_before_the_training(
    package: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    recipe = tiny(f"train.trackers={package}")
    trackers, problems = tracking.build_trackers(recipe)
    assert trackers == {}
    expected = f'needs the package {package}, which is not installed: pip install "reptk[{package}]". The run continues'
    assert expected in problems[0]
    if package == "wandb":
        (tmp_path / "tracked.toml").write_text(recipe.dump())
        assert main([str(tmp_path / "tracked.toml"), "--check"]) == 0
        assert expected in capsys.readouterr().out


# TensorBoard


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The scalars of event files as TensorBoard shows them, (step, value) by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    tags = accumulator.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in tags}


def expected_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The scalars that follow from metrics.jsonl and results.json, without the times."""
    expected: dict[str, list[tuple[int, float]]] = {}
    for row in metric_rows(folder):
        for name in row.keys() - {"step"}:
            expected.setdefault(name, []).append((row["step"], pytest.approx(row[name])))
    last_step = metric_rows(folder)[-1]["step"]
    for row_name, values in result_metrics(folder).items():
        for name, value in values.items():
            expected[f"results/{row_name}/{name}"] = [(last_step, pytest.approx(value))]
    return expected


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("is_stopped", [False, True])
def test_tensorboard_shows_every_row_once(is_stopped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    folder = tmp_path / "run"
    recipe = tiny("train.trackers=tensorboard")
    if is_stopped:
        stop_in_the_second_epoch(recipe, folder, monkeypatch)
        # As if the process had been killed after rows that the checkpoint does not have.
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(folder / "tensorboard")) as writer:
            writer.add_scalar("loss", 99.0, 5)
    run_silently(recipe, folder)
    assert scalars(folder / "tensorboard") == expected_scalars(folder)


class FakeWriter:
    """Stands for TensorBoard's writer where that is not installed: creates its folder."""

    def __init__(self, folder: str, purge_step: int | None = None) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)

    def add_text(self, *_: object) -> None:
        pass


def test_a_folder_for_several_runs_has_one_for_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorboard, "require_package", lambda *_: None)
    monkeypatch.setattr(tensorboard.TensorBoard, "_open", lambda self, **_: FakeWriter(str(self._path)))
    shown = tmp_path / "shown"

    def start(folder: Path, state: Mapping[str, str]) -> dict[str, str]:
        tracker = tensorboard.TensorBoard(folder=str(shown))
        tracker._writer = FakeWriter(str(tmp_path / "unused"))
        return dict(tracker.start(TrackedRun(folder, "tiny", {}, state)))

    first = start(tmp_path / "runs" / "seed=0", {})
    start(tmp_path / "runs" / "seed=1", {})
    start(tmp_path / "tiny" / "3", {})
    start(tmp_path / "other" / "seed=0", {})
    expected = ["seed=0", "seed=0-2", "seed=1", "tiny"]
    assert sorted(path.name for path in shown.iterdir()) == expected
    assert (shown / "tiny" / "3").is_dir()
    # A resumed run goes on in its folder, but in none elsewhere that a damaged file names.
    assert start(tmp_path / "runs" / "seed=0", first) == first
    assert start(tmp_path / "a", {"name": "../../b"})["name"] == "a"
    assert first["place"] == f"tensorboard --logdir {shown}"


# Weights & Biases


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file, which is a log of LevelDB: blocks of 32 KiB with parts of records."""
    from wandb.proto.wandb_internal_pb2 import Record

    content = path.read_bytes()
    header = struct.Struct("<IHB")  # checksum, length, kind: 1 whole, 2 first, 3 middle, 4 last part
    position, record = 7, b""
    while position + header.size <= len(content):
        left_in_block = 32768 - position % 32768
        if left_in_block < header.size:
            position += left_in_block
            continue
        _, length, kind = header.unpack_from(content, position)
        position += header.size
        record += content[position : position + length]
        position += length
        if kind in (1, 4):
            parsed = Record()
            parsed.ParseFromString(record)
            yield parsed
            record = b""


def history_of(records: Sequence[Any], is_wanted: Callable[[str], bool]) -> dict[int, dict[str, float]]:
    """The rows of the history by their numbers."""
    rows: dict[int, dict[str, float]] = {}
    for record in records:
        if record.WhichOneof("record_type") != "history":
            continue
        number = record.history.step.num
        assert number not in rows
        values = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
        rows[number] = {key: json.loads(value) for key, value in values.items() if is_wanted(key)}
    return rows


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_wandb_offline_has_every_row_once_in_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_DISABLE_GIT", "true")
    monkeypatch.setenv("WANDB__SERVICE_WAIT", "300")
    # On a busy machine it takes W&B longer to start.
    monkeypatch.setattr(feed, "STOP_SECONDS", 120.0)
    monkeypatch.setattr(feed, "FINISH_SECONDS", 120.0)
    folder = tmp_path / "run"
    recipe = tiny("train.trackers=wandb", "trackers.wandb.mode=offline", "train.report=false")
    stop_in_the_second_epoch(recipe, folder, monkeypatch)
    run_silently(recipe, folder)
    records = []
    run_ids = set()
    files = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2
    for path in files:
        records += wandb_records(path)
    for record in records:
        if record.WhichOneof("record_type") == "run":
            run_ids.add((record.run.project, record.run.run_id, record.run.display_name))
    [(project, run_id, name)] = run_ids
    assert (project, name) == ("reptk", "tiny")
    assert json.loads((folder / "trackers.json").read_text())["wandb"]["state"]["id"] == run_id
    history = history_of(records, lambda key: not key.startswith("_"))
    assert history == dict(enumerate(metric_rows(folder), start=1))
    summary = {}
    for record in records:
        if record.WhichOneof("record_type") == "summary":
            summary |= {item.key: item.value_json for item in record.summary.update}
    assert json.loads(summary["trained/knn@5"]) == result_metrics(folder)["trained"]["knn@5"]
