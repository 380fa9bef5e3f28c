"""The feed of trackers: every row once and in order, whatever the tracker does."""

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from reptk.config.registry import with_defaults
from reptk.trackers import STATE_FILE, TrackedRun, Tracker, TrackerFeed, feed, read_rows

ROWS = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 2, "rank": 7.0}, {"step": 3, "loss": 1.0}]


class Recording:
    """Records its calls."""

    def __init__(self, *, forgets: bool = False, accepts_rows_again: bool = False) -> None:
        self.forgets = forgets
        self.accepts_rows_again = accepts_rows_again
        self.runs: list[TrackedRun] = []
        self.rows: list[tuple[int, Mapping[str, float]]] = []
        self.ends: list[tuple[str, Mapping[str, float], Sequence[Path]]] = []
        self.thread_names: set[str] = set()

    def start(self, run: TrackedRun) -> dict[str, str]:
        self.runs.append(run)
        return {"id": "42"}

    def log(self, number: int, row: Mapping[str, float]) -> None:
        self.thread_names.add(threading.current_thread().name)
        self.rows.append((number, row))

    def forget(self, step: int) -> bool:
        if self.forgets:
            self.rows = [(number, row) for number, row in self.rows if row["step"] < step]
        return self.forgets

    def finish(self, end: str, summary: Mapping[str, float], files: Sequence[Path]) -> None:
        self.ends.append((end, summary, files))


def track(
    tracker: Any,
    folder: Path,
    rows: Sequence[dict[str, Any]],
    *,
    before: int = 0,
    report: Callable[[str], None] = lambda text: None,
    end: str = "finished",
) -> None:
    """Log rows of a run, of which `before` were logged by an earlier process."""
    tracker_feed = TrackerFeed({"recording": with_defaults(tracker, Tracker)}, report)
    tracker_feed.start(folder, "name", {"seed": 0}, rows[:before])
    for number, row in enumerate(rows[before:], start=before + 1):
        tracker_feed.log_row(number, row)
    tracker_feed.finish(end, {"trained/knn@20": 0.5}, [folder / "report.html"])


def test_a_tracker_gets_every_row_in_order_in_a_thread_of_its_own(tmp_path: Path) -> None:
    tracker = Recording()
    track(tracker, tmp_path, ROWS)
    assert tracker.rows == list(enumerate(ROWS, start=1))
    assert tracker.runs == [TrackedRun(tmp_path, "name", {"seed": 0}, {})]
    assert tracker.ends == [("finished", {"trained/knn@20": 0.5}, [tmp_path / "report.html"])]
    assert tracker.thread_names == {"reptk-tracker-recording"}


def test_only_numbers_are_passed_on(tmp_path: Path) -> None:
    tracker = Recording()
    track(tracker, tmp_path, [{"step": 1, "name": "x", "flag": True, "loss": 0.5, "none": None}])
    assert tracker.rows == [(1, {"step": 1, "loss": 0.5})]


@pytest.mark.parametrize("forgets", [False, True])
@pytest.mark.parametrize("before", range(len(ROWS) + 1))
@pytest.mark.parametrize("logged", range(len(ROWS) + 1))
def test_a_resumed_run_continues_the_curve(logged: int, before: int, forgets: bool, tmp_path: Path) -> None:
    """Wherever the first process ended, and from whatever row the second one goes on, the curve has every row once."""
    tracker = Recording(forgets=forgets)
    track(tracker, tmp_path, ROWS[:logged], end="stopped")
    track(tracker, tmp_path, ROWS, before=before)
    assert tracker.runs[1].state == {"id": "42"}
    assert tracker.rows == list(enumerate(ROWS, start=1))


@pytest.mark.parametrize(
    ("forgets", "accepts_rows_again"), [(False, False), (False, True), (True, False)], ids=["keeps", "adds", "forgets"]
)
def test_a_run_that_goes_back_logs_other_rows_where_the_tracker_takes_them(
    forgets: bool, accepts_rows_again: bool, tmp_path: Path
) -> None:
    tracker = Recording(forgets=forgets, accepts_rows_again=accepts_rows_again)
    lines: list[str] = []
    tracker_feed = TrackerFeed({"recording": tracker}, lines.append)
    tracker_feed.start(tmp_path, "name", {})
    for number, row in enumerate(ROWS, start=1):
        tracker_feed.log_row(number, row)
    tracker_feed.rewind(ROWS[:2])
    new_row = (3, {"step": 2, "rank": 5.0})
    tracker_feed.log_row(*new_row)
    tracker_feed.finish("finished")
    expected = list(enumerate(ROWS, start=1))
    if forgets:
        expected = [*expected[:2], new_row]
    if accepts_rows_again:
        expected = [*expected, new_row]
    assert tracker.rows == expected
    keeps = not forgets and not accepts_rows_again
    assert len(lines) == keeps
    if keeps:
        assert "tracker 'recording' cannot remove rows: it keeps 2 rows of steps that the run repeats" in lines[0]


@pytest.mark.parametrize("method", ["start", "log", "finish"])
def test_a_tracker_that_fails_is_reported_once(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ConnectionError("no route\nto host")

    lines: list[str] = []
    tracker = Recording()
    monkeypatch.setattr(tracker, method, fail)
    track(tracker, tmp_path, ROWS, report=lines.append)
    assert lines == [
        "tracker 'recording' has failed: ConnectionError: no route to host. The run continues without it, metrics.jsonl has "
        "everything, and a run that is resumed sends it what it lacks"
    ]


def test_a_tracker_that_failed_gets_what_it_lacks_when_the_run_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Recording()
    log = tracker.log

    def fail_at_the_third_row(number: int, row: Mapping[str, float]) -> None:
        if number == 3:
            raise ConnectionError("no route to host")
        log(number, row)

    with monkeypatch.context() as patch:
        patch.setattr(tracker, "log", fail_at_the_third_row)
        track(tracker, tmp_path, ROWS, end="stopped")
    track(tracker, tmp_path, ROWS, before=len(ROWS))
    assert tracker.rows == list(enumerate(ROWS, start=1))


def test_a_tracker_that_does_not_answer_does_not_hold_up_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "FINISH_SECONDS", 0.1)
    answers = threading.Event()
    lines: list[str] = []
    tracker = Recording()
    monkeypatch.setattr(tracker, "start", lambda run: answers.wait(60) and {})
    track(tracker, tmp_path, ROWS, report=lines.append)
    assert lines == ["tracker 'recording' has not answered for 0.1 s; the run ends without it"]
    answers.set()


@pytest.mark.parametrize(
    "content", [None, "{", "[]", '{"recording": 1}', '{"recording": {"state": {"id": 3}, "rows": -1}}']
)
def test_a_damaged_state_is_that_of_a_new_curve(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / STATE_FILE).write_text(content)
    tracker = Recording()
    track(tracker, tmp_path, ROWS, before=2)
    assert tracker.runs[0].state == {}
    assert tracker.rows == list(enumerate(ROWS, start=1))


def test_rows_are_read_as_far_as_they_can_be(tmp_path: Path) -> None:
    assert read_rows(tmp_path, 3) == []
    lines = [json.dumps(row) for row in ROWS]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert read_rows(tmp_path, 3) == ROWS[:3]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines[:2], "{"]))
    assert read_rows(tmp_path, 3) == ROWS[:2]
