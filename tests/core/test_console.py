"""What a run logs to metrics.jsonl, and what it prints on a terminal and off it."""

import io
import json
import resource
import signal
import time
from pathlib import Path

import pytest
from rich.console import Console

from reptk.core import progress_lines
from reptk.core.console import Logger
from reptk.core.progress_lines import format_duration

# metrics.jsonl


def logged_steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_rows_after_those_of_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    logger = Logger(console=Console(file=io.StringIO()))
    logger.write_metrics_to(path)
    for step in range(1, 7):
        logger.metrics(step=step, loss=1 / step)
    assert logger.metrics_rows == 6
    # A row that the process could not finish before it was killed.
    path.write_text(path.read_text() + '{"step": 7, "lo')
    resumed = Logger(console=Console(file=io.StringIO()))
    resumed.write_metrics_to(path, 4)
    assert logged_steps(path) == [1, 2, 3, 4]
    resumed.metrics(step=5, loss=0.5)
    resumed.flush_metrics()
    assert resumed.metrics_rows == 5
    assert logged_steps(path) == [1, 2, 3, 4, 5]
    assert json.loads(path.read_text().splitlines()[-1]) == {"step": 5, "loss": 0.5}


def test_rows_that_a_crash_of_the_system_has_lost_stay_lost(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    logger = Logger(console=Console(file=io.StringIO()))
    logger.write_metrics_to(path, 4)
    assert logger.metrics_rows == 2
    logger.metrics(step=5)
    assert logged_steps(path) == [1, 2, 5]


def test_rows_that_a_full_disk_refuses_are_written_later(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "metrics.jsonl"
    logger = Logger()
    logger.write_metrics_to(path)
    logger.metrics(step=1)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 3, limit[1]))
        logger.metrics(step=2)
        logger.metrics(step=3)
        assert logged_steps(path) == [1]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    logger.metrics(step=4)
    assert logged_steps(path) == [1, 2, 3, 4]
    assert capsys.readouterr().out.count("cannot write to") == 1


def test_silent_logger_touches_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 9}\n')
    logger = Logger(prints=False)
    logger.write_metrics_to(path)
    logger.metrics(step=10)
    logger.line("hello")
    logger.facts([("data", "photos", "some")])
    logger.results(["knn@1"], {"trained": {"knn@1": 1.0}})
    with logger.progress(1, 2, 0) as progress:
        progress.step(1, 0.5, 10.0, 1.0)
        progress.epoch(1, 0.5, 10.0, 1.0)
    assert path.read_text() == '{"step": 9}\n'
    assert capsys.readouterr().out == ""


def test_logger_may_write_without_printing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = Logger(prints=False, writes=True)
    logger.write_metrics_to(tmp_path / "metrics.jsonl")
    logger.metrics(step=1)
    logger.line("hello")
    assert logged_steps(tmp_path / "metrics.jsonl") == [1]
    assert capsys.readouterr().out == ""


# What is printed


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0, "0:00"), (0.4, "0:00"), (41, "0:41"), (59.6, "1:00"), (60, "1:00"), (725, "12:05")),
        *((3599.7, "1:00:00"), (10931, "3:02:11"), (360000, "100:00:00")),
    ],
)
def test_durations_are_hours_minutes_and_seconds(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


METRICS = [
    *("knn@1", "knn@10", "knn@20", "knn@100", "knn@200", "knn_majority@20", "recall@1", "recall@5", "recall@10"),
    *("map@r", "r_precision", "linear"),
]


@pytest.fixture
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Output into a file or pipe, which rich takes to be 80 columns wide."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("FORCE_COLOR", raising=False)


def test_results_are_a_table(no_terminal: None, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {"raw pixels": {"knn@1": 0.25, "map@r": 0.125}, "trained": {"knn@1": 1.0}}
    Logger().results(["knn@1", "map@r"], rows)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines == ["            kNN@1  mAP@R", "raw pixels   25.0   12.5", "trained     100.0"]


def test_results_show_every_column_off_a_terminal(no_terminal: None, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {name: dict.fromkeys(METRICS, 0.9876) for name in ("raw pixels", "untrained", "trained")}
    Logger().results(METRICS, rows)
    head, *lines = capsys.readouterr().out.splitlines()
    families = "kNN@1 @10 @20 @100 @200 majority@20 Recall@1 @5 @10 mAP@R R-prec. Linear"
    assert head.split() == families.split()
    assert [line.split("  ")[0] for line in lines] == ["raw pixels", "untrained", "trained"]
    assert all(line.count("98.8") == len(METRICS) for line in lines)


def test_lines_are_printed_without_markup_and_wrapping(no_terminal: None, capsys: pytest.CaptureFixture[str]) -> None:
    line = "[bold]no markup[/bold] " + 30 * "a long path / "
    Logger().line(line)
    Logger().facts([("data", "photos", line), ("encoder", "resnet10t", "4.9 M weights")])
    lines = capsys.readouterr().out.splitlines()
    assert lines == [line, f"  data     photos     {line}", "  encoder  resnet10t  4.9 M weights"]


def test_epoch_is_a_line_off_a_terminal(no_terminal: None, capsys: pytest.CaptureFixture[str]) -> None:
    with Logger().progress(2, 3, 0) as progress:
        for step in range(1, 7):
            progress.step(step, 0.5, 1234.5, 70.0)
            if step % 3 == 0:
                progress.suffix = "rank 7/16"
                progress.epoch(step // 3, 0.5, 1234.5, 70.0 if step < 6 else float("inf"))
    assert capsys.readouterr().out.splitlines() == [
        "epoch 1/2  loss 0.500  1,234 views/s  1:10 left  rank 7/16",
        "epoch 2/2  loss 0.500  1,234 views/s  ? left  rank 7/16",
    ]


def test_epoch_is_a_bar_on_a_terminal() -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, width=100)
    with Logger(console=terminal).progress(2, 3, 0) as progress:
        progress.step(4, 0.5, 1234.5, 70.0)
        progress.bar.refresh()
        progress.epoch(1, 0.5, 1234.5, 70.0)
    printed = terminal.file.getvalue()
    assert "epoch 2/2" in printed
    assert "epoch 1/2" not in printed


def test_stages_are_one_bar_after_the_other_on_a_terminal() -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, width=100)
    with Logger(console=terminal).stages("untrained encoder") as progress:
        progress("encoding", 300, 300)
        progress("searching", 20, 40)
    printed = terminal.file.getvalue()
    assert "untrained encoder: searching" in printed
    assert "20/40" in printed


# A line a minute off a terminal


class Clock:
    """Stands in for `time.monotonic`."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock(no_terminal: None, monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress_lines.time, "monotonic", clock)
    return clock


def test_work_of_less_than_a_minute_prints_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Logger().stages("untrained encoder") as progress:
        progress("encoding", 300, 300)
    with Logger().count("embedding", 10) as advance:
        clock.seconds += 59
        advance(10)
    with Logger().status("measuring recall"):
        pass
    assert capsys.readouterr().out == ""


def test_what_is_counted_is_a_line_a_minute(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Logger().count("embedding", 10_000, "images", done=1000) as advance:
        for _ in range(9):
            clock.seconds += 20
            advance(1000)
    assert capsys.readouterr().out.splitlines() == [
        "embedding: 4,000 of 10,000 images, 2:00 left",
        "embedding: 7,000 of 10,000 images, 1:00 left",
        "embedding: 10,000 of 10,000 images, 0:00 left",
    ]


def test_stages_are_a_line_a_minute(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Logger().stages("trained encoder") as progress:
        for stage, total in (("encoding", 400), ("searching", 800)):
            for done in range(0, total + 1, 100):
                clock.seconds += 25
                progress(stage, done, total)
    assert capsys.readouterr().out.splitlines() == [
        "trained encoder: encoding: 200 of 400, 0:50 left",
        "trained encoder: searching: 0 of 800",
        "trained encoder: searching: 300 of 800, 2:05 left",
        "trained encoder: searching: 600 of 800, 0:50 left",
    ]


def test_long_epochs_are_a_line_a_minute(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Logger().progress(2, 4, 0) as progress:
        for step in range(1, 9):
            clock.seconds += 40
            progress.step(step, 0.5, 100.0, 90.0)
            if step % 4 == 0:
                progress.epoch(step // 4, 0.5, 100.0, 90.0)
        with progress.stages("evaluation after epoch 2") as report:
            clock.seconds += 60
            report("encoding", 1, 2)
    numbers = "loss 0.500  100 views/s  1:30 left"
    assert capsys.readouterr().out.splitlines() == [
        f"epoch 1/2  step 2/4  {numbers}",
        f"epoch 1/2  {numbers}",
        f"epoch 2/2  step 2/4  {numbers}",
        f"epoch 2/2  {numbers}",
        "evaluation after epoch 2: encoding: 1 of 2",
    ]


def test_work_that_cannot_be_counted_is_a_line_a_minute(
    no_terminal: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_lines, "LINE_EVERY_SECONDS", 0.01)
    with Logger().status("measuring recall"):
        time.sleep(0.2)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 2
    assert set(lines) == {"measuring recall: 0:00 so far"}
    with Logger(prints=False).status("measuring recall"), Logger(prints=False).count("embedding", 3) as advance:
        time.sleep(0.05)
        advance(3)
    assert capsys.readouterr().out == ""


def test_a_terminal_has_no_lines(clock: Clock) -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, width=100)
    logger = Logger(console=terminal)
    with logger.count("embedding", 10, done=4) as advance:
        clock.seconds += 100
        advance(1)
    assert " left" not in terminal.file.getvalue()
    with logger.progress(2, 3, 0) as progress:
        clock.seconds += 100
        progress.step(4, 0.5, 1234.5, 70.0)
        with progress.stages("evaluation") as report:
            clock.seconds += 100
            report("encoding", 1, 2)
    assert "step 1/3" not in terminal.file.getvalue()
    assert "evaluation" not in terminal.file.getvalue()
