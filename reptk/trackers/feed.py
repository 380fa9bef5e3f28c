"""Feeds trackers with the rows of metrics.jsonl, each in a thread, so that a service that is slow or away stops nothing.

`trackers.json` in the run's folder holds, for each tracker, what identifies its curve and how many rows it has. A run that is
resumed continues the curve: rows that the tracker lacks are sent from metrics.jsonl, and those that it has are not sent again.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

from reptk.core.counts import format_count
from reptk.core.errors import EnvironmentProblem, ReptkError
from reptk.core.files import json_text, parse_json, write_text
from reptk.core.foreign_files import open_regular, read_json
from reptk.trackers.protocol import End, TrackedRun, Tracker

STATE_FILE = "trackers.json"
METRICS_FILE = "metrics.jsonl"

FINISH_SECONDS = 60.0
STOP_SECONDS = 10.0
"""How long the end of a run waits for a tracker; less for one that was stopped, since whoever stops it does not wait long."""

Row = Mapping[str, Any]


class _Rewind(NamedTuple):
    """The rows of the run after these are logged again.

    has_changes: whether they will have other values, and not those that the tracker may have already.
    """

    rows: list[dict[str, Any]]
    has_changes: bool


class _End(NamedTuple):
    """The run has ended."""

    end: End
    summary: Mapping[str, float]
    files: Sequence[Path]


class TrackerFeed:
    """Passes rows on to trackers. Nothing here raises or waits, apart from `finish`, which waits for a limited time.

    Args:
        trackers: by name; none: nothing happens.
        report: prints a line; called from other threads, too.
    """

    def __init__(self, trackers: Mapping[str, Tracker], report: Callable[[str], None]) -> None:
        self._trackers = trackers
        self._report = report
        self._threads: list[_TrackerThread] = []

    def start(self, folder: Path, name: str, config: Mapping[str, Any], rows: Sequence[dict[str, Any]] = ()) -> None:
        """Start a thread for each tracker.

        Args:
            folder: the run's.
            name: see `TrackedRun`.
            config: see `TrackedRun`.
            rows: of metrics.jsonl so far, which a resumed run has.
        """
        state_file = _StateFile(folder / STATE_FILE)
        for tracker_name, tracker in self._trackers.items():
            state, num_logged = state_file.read(tracker_name)
            run = TrackedRun(folder, name, config, state)
            thread = _TrackerThread(tracker_name, tracker, run, num_logged, state_file, self._report)
            thread.rewind(_Rewind(list(rows), has_changes=False))
            thread.start()
            self._threads.append(thread)

    def log_row(self, number: int, row: Row) -> None:
        """Pass on a row of metrics.jsonl.

        Args:
            number: of the row, from 1.
            row: values by name; all but numbers are left out.
        """
        numbers = {key: value for key, value in row.items() if _is_number(value)}
        for thread in self._threads:
            thread.put_row(number, numbers)

    def rewind(self, rows: Sequence[dict[str, Any]]) -> None:
        """Let the rows after these be logged again: the run has gone back to an earlier step, and leaves one out.

        A tracker that can neither forget rows nor take them again keeps the old ones, and a line says so.
        """
        for thread in self._threads:
            thread.rewind(_Rewind(list(rows), has_changes=True))

    def finish(self, end: End, summary: Mapping[str, float] | None = None, files: Sequence[Path] = ()) -> None:
        """End the tracking: wait until all rows are sent, but not for long. A second call does nothing.

        Args:
            end: how the run ended.
            summary, files: see `Tracker.finish`.
        """
        seconds = STOP_SECONDS
        if end == "finished":
            seconds = FINISH_SECONDS
        for thread in self._threads:
            thread.end(_End(end, summary or {}, files))
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                self._report(
                    f"tracker {thread.tracker_name!r} has not answered for {seconds:g} s; the run ends without it"
                )
        self._threads = []


class _TrackerThread(threading.Thread):
    """The thread in which one tracker is called."""

    def __init__(
        self,
        tracker_name: str,
        tracker: Tracker,
        run: TrackedRun,
        num_logged: int,
        state_file: "_StateFile",
        report: Callable[[str], None],
    ) -> None:
        # A daemon: a service that does not answer must not keep the process alive.
        super().__init__(name=f"reptk-tracker-{tracker_name}", daemon=True)
        self.tracker_name = tracker_name
        self._tracker = tracker
        self._run = run
        self._state: Mapping[str, str] = run.state
        self._num_logged = num_logged
        self._state_file = state_file
        self._report = report
        self._queue: SimpleQueue[Any] = SimpleQueue()
        self._has_failed = False

    def put_row(self, number: int, row: Mapping[str, float]) -> None:
        if not self._has_failed:
            self._queue.put((number, row))

    def rewind(self, item: _Rewind) -> None:
        self._queue.put(item)

    def end(self, end: _End) -> None:
        self._queue.put(end)

    def run(self) -> None:
        try:
            self._track()
        # SystemExit, too, which libraries raise.
        except BaseException as cause:
            self._has_failed = True
            self._save_state()
            self._report(
                f"tracker {self.tracker_name!r} has failed: {_one_line(cause)}. The run continues without it, metrics.jsonl "
                "has everything, and a run that is resumed sends it what it lacks"
            )

    def _track(self) -> None:
        self._state = dict(self._tracker.start(self._run))
        self._save_state()
        if self._state.get("place"):
            self._report(f"{self.tracker_name}: {self._state['place']}")
        while True:
            item = self._queue.get()
            if isinstance(item, _End):
                self._save_state()
                self._tracker.finish(item.end, item.summary, item.files)
                return
            if isinstance(item, _Rewind):
                self._rewind(item)
            else:
                self._log(*item)
            if self._queue.empty():
                self._save_state()

    def _rewind(self, item: _Rewind) -> None:
        """Let the tracker have these rows, and no more of them than before, if it can remove rows."""
        rows = item.rows
        num_replaced = self._num_logged - len(rows)
        # A process that was killed may have logged more than it has counted, so a resumed run does this in any case.
        if self._run.state or self._num_logged > len(rows):
            first_step = 0
            if rows:
                first_step = rows[-1].get("step", 0)
            if self._tracker.forget(first_step):
                num_remaining = sum(row.get("step", 0) < first_step for row in rows)
                self._num_logged = min(self._num_logged, num_remaining)
            elif item.has_changes and num_replaced > 0:
                self._handle_unremovable_rows(len(rows), num_replaced)
        for number, row in enumerate(rows, start=1):
            self._log(number, {key: value for key, value in row.items() if _is_number(value)})

    def _handle_unremovable_rows(self, num_rows: int, num_replaced: int) -> None:
        """Continue with a tracker that cannot remove the rows after the first `num_rows`."""
        if self._tracker.accepts_rows_again:
            self._num_logged = num_rows
            return
        self._report(
            f"tracker {self.tracker_name!r} cannot remove rows: it keeps {format_count(num_replaced, 'row')} of steps that the "
            "run repeats, and does not get the new ones in their place; metrics.jsonl has them"
        )

    def _log(self, number: int, row: Mapping[str, float]) -> None:
        if number > self._num_logged:
            self._tracker.log(number, row)
            self._num_logged = number

    def _save_state(self) -> None:
        self._state_file.write(self.tracker_name, self._state, self._num_logged)


class _StateFile:
    """trackers.json: for each tracker, what identifies its curve and how many rows it has. Used by several threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._content: dict[str, Any] = {}
        try:
            content = read_json(path)
        except (OSError, ValueError):
            content = {}
        if isinstance(content, dict):
            self._content = content

    def read(self, tracker_name: str) -> tuple[dict[str, str], int]:
        """Return the state of a tracker and the number of its rows; somebody else may have written the file."""
        entry = self._content.get(tracker_name)
        if not isinstance(entry, dict) or not isinstance(entry.get("state"), dict):
            return {}, 0
        state = {key: value for key, value in entry["state"].items() if isinstance(value, str)}
        rows = entry.get("rows")
        if not isinstance(rows, int) or rows < 0:
            rows = 0
        return state, rows

    def write(self, tracker_name: str, state: Mapping[str, str], rows: int) -> None:
        """Write the entry of a tracker. A disk that is full loses it, and stops nothing."""
        with self._lock:
            self._content[tracker_name] = {"state": dict(state), "rows": rows}
            try:
                write_text(self._path, json_text(self._content, indent=2) + "\n")
            except (OSError, EnvironmentProblem):
                return


def read_rows(folder: Path, count: int) -> list[dict[str, Any]]:
    """Return the first `count` rows of a run's metrics.jsonl, as many as there are."""
    if count == 0:
        return []
    rows = []
    try:
        with open_regular(folder / METRICS_FILE) as file:
            for line in file.read().splitlines()[:count]:
                row = parse_json(line)
                rows.append(row if isinstance(row, dict) else {})
    except (OSError, ValueError):
        return rows
    return rows


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    if isinstance(error, ReptkError):
        return text
    return f"{type(error).__name__}: {text}"
