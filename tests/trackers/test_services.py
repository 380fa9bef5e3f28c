"""trackio and MLflow on this machine, where they are installed: every row once, though a second process logs some again."""

from pathlib import Path
from typing import Any

import pytest

from reptk.trackers import MLflow, Tracker, TrackerFeed, Trackio, feed

ROWS = [{"step": step, "loss": 1 / step, "knn@5": 0.5} for step in range(1, 6)]
LOSSES = [(row["step"], row["loss"]) for row in ROWS]
CONFIG = {"seed": 0, "loss": {"name": "tcl", "k1": 10.0}}

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine, services take long to start."""
    monkeypatch.setattr(feed, "STOP_SECONDS", 120.0)
    monkeypatch.setattr(feed, "FINISH_SECONDS", 120.0)


def track_in_two_processes(trackers: list[Tracker], folder: Path) -> list[str]:
    """Log three rows, stop, and go on from the second row; return what was reported."""
    report = folder / "report.html"
    report.write_text("<p>")
    lines: list[str] = []
    for tracker, rows, before in ((trackers[0], ROWS[:3], 0), (trackers[1], ROWS, 2)):
        tracker_feed = TrackerFeed({"service": tracker}, lines.append)
        tracker_feed.start(folder, "tiny", CONFIG, rows[:before])
        for number, row in enumerate(rows[before:], start=before + 1):
            tracker_feed.log_row(number, row)
        if rows is ROWS:
            tracker_feed.finish("finished", {"trained/knn@5": 0.7}, [report])
        else:
            tracker_feed.finish("stopped")
    return lines


def test_mlflow_has_one_run_with_every_row_once(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    trackers: list[Any] = [MLflow(tracking_uri=uri), MLflow(tracking_uri=uri)]
    lines = track_in_two_processes(trackers, tmp_path)
    assert all(line.endswith("of experiment reptk") for line in lines), lines
    client = mlflow.MlflowClient(uri)
    [run] = client.search_runs([client.get_experiment_by_name("reptk").experiment_id])
    assert (run.info.run_name, run.info.status) == ("tiny", "FINISHED")
    assert run.data.params == {"seed": "0", "loss.name": "tcl", "loss.k1": "10.0"}
    assert run.data.metrics["results/trained/knn_at_5"] == 0.7
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == LOSSES
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["report.html"]


def test_trackio_has_one_run_with_every_row_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Before the import, which reads it.
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    lines = track_in_two_processes([Trackio(), Trackio()], tmp_path)
    assert lines == ["service: trackio show --project reptk"] * 2
    [name] = SQLiteStorage.get_runs("reptk")
    assert name.startswith("tiny ")
    rows = SQLiteStorage.get_logs("reptk", name)
    assert [(row["step"], row["loss"]) for row in rows if "loss" in row] == LOSSES
    assert rows[-1]["results/trained/knn@5"] == 0.7
