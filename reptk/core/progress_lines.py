"""Progress where there is no terminal to draw a bar on, e.g. in a log file or a job's output: a line a minute."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LINE_EVERY_SECONDS = 60.0


class ProgressLines:
    """Prints how far long work is, at most one line a minute; work that takes less than a minute prints nothing.

    Args:
        print_line: prints a line.
    """

    def __init__(self, print_line: Callable[[str], None]) -> None:
        self._print_line = print_line
        self._last_line = time.monotonic()
        self._started = self._last_line
        self._done_at_start = 0

    def begin(self, done: int = 0) -> None:
        """Measure the rate of what follows from now on, when `done` items are done."""
        self._started = time.monotonic()
        self._done_at_start = done

    def is_due(self) -> bool:
        """Return whether the last line is a minute ago; if so, the caller prints one."""
        now = time.monotonic()
        if now - self._last_line < LINE_EVERY_SECONDS:
            return False
        self._last_line = now
        return True

    def line_was_printed(self) -> None:
        """Wait for a minute from now on: something else was printed that says how far the work is."""
        self._last_line = time.monotonic()

    def report(self, text: str, done: int, total: int, unit: str = "") -> None:
        """Print that `done` of `total` items are done, if it is time, and how long the others take at the rate so far."""
        if not self.is_due():
            return
        count = f"{done:,} of {total:,}"
        if unit:
            count = f"{count} {unit}"
        seconds = time.monotonic() - self._started
        newly_done = done - self._done_at_start
        left = ""
        if newly_done > 0:
            left = f", {format_duration(seconds / newly_done * (total - done))} left"
        self._print_line(f"{text}: {count}{left}")


@contextmanager
def lines_while_running(text: str, print_line: Callable[[str], None]) -> Iterator[None]:
    """Print a line a minute while the block runs, for work that cannot be counted."""
    finished = threading.Event()
    started = time.monotonic()

    def print_lines() -> None:
        while not finished.wait(LINE_EVERY_SECONDS):
            print_line(f"{text}: {format_duration(time.monotonic() - started)} so far")

    thread = threading.Thread(target=print_lines, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


def format_duration(seconds: float) -> str:
    """Return minutes and seconds, or hours, minutes and seconds: `0:41`, `12:05`, `3:02:11`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minute:02}:{second:02}"
    return f"{minute}:{second:02}"
