"""The output of a run: a progress bar on a terminal, a line per epoch and minute elsewhere, and the file metrics.jsonl."""

import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from reptk.core.files import json_text, write_bytes
from reptk.core.foreign_files import open_regular
from reptk.core.metric_names import display_name
from reptk.core.progress_lines import ProgressLines, format_duration, lines_while_running


class Logger:
    """Prints the progress and the results of one run, and appends to its metrics.jsonl.

    Args:
        prints: whether to print; on several ranks, only rank 0 should.
        writes: whether to write metrics; by default the same as `prints`.
        console: where to print; None for standard output.
    """

    def __init__(self, prints: bool = True, writes: bool | None = None, console: Console | None = None) -> None:
        if writes is None:
            writes = prints
        self.prints = prints
        self.writes = writes
        self.console = console or Console(highlight=False)
        if not self.console.is_terminal:
            self.console.width = 160  # a file or a pipe has no width of its own
        self.metrics_rows = 0
        """Rows of the file of metrics so far."""
        self.metrics_listener: Callable[[int, Mapping[str, Any]], None] | None = None
        """Called with every row of the file of metrics and its number, from 1."""
        self._metrics_file: Path | None = None
        self._unwritten_rows: list[str] = []

    def write_metrics_to(self, path: Path, rows: int = 0) -> None:
        """Append to this file from now on, after its first `rows` lines; further ones are of steps that are done again."""
        self._metrics_file = path
        self._unwritten_rows = []
        self.metrics_rows = rows
        if not self.writes or not (path.exists() or path.is_symlink()):
            return
        with open_regular(path) as file:
            lines = file.read().splitlines(keepends=True)
        # A crash of the system may have lost the last lines, or a part of one.
        complete = [line for line in lines[:rows] if line.endswith(b"\n")]
        self.metrics_rows = len(complete)
        if complete != lines:
            write_bytes(path, b"".join(complete))

    def metrics(self, **values: Any) -> None:
        """Append one row to metrics.jsonl. If that fails, e.g. since the disk is full, it is tried again with the next row."""
        if self._metrics_file is None:
            return
        self.metrics_rows += 1
        if self.metrics_listener is not None:
            self.metrics_listener(self.metrics_rows, values)
        if not self.writes:
            return
        self._unwritten_rows.append(json_text(values) + "\n")
        try:
            self._append_rows(self._metrics_file)
        except OSError as cause:
            if len(self._unwritten_rows) == 1:
                self.line(
                    f"cannot write to {self._metrics_file}: {cause.strerror}. Training continues; the rows are written later"
                )

    def _append_rows(self, path: Path) -> None:
        """Write the rows that are not written yet, or none of them."""
        content = "".join(self._unwritten_rows).encode()
        # Opened and closed for every row, so that no row is lost if the process is killed; and without a buffer, which would
        # be written once more when the file is closed.
        with path.open("ab", buffering=0) as file:
            num_bytes = file.seek(0, os.SEEK_END)
            if file.write(content) < len(content):
                os.ftruncate(file.fileno(), num_bytes)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._unwritten_rows = []

    def flush_metrics(self) -> None:
        """Wait until the rows so far are on the disk; a disk that is full stops nothing."""
        if not self.writes or self._metrics_file is None:
            return
        with suppress(OSError):
            if self._unwritten_rows:
                self._append_rows(self._metrics_file)
            with self._metrics_file.open("rb") as file:
                os.fsync(file.fileno())

    def line(self, text: str = "", style: str | None = None) -> None:
        """Print a line; nothing in it is interpreted as markup."""
        if self.prints:
            self.console.print(Text(text, style=style or ""), soft_wrap=True)

    def facts(self, rows: Sequence[tuple[str, str, str]]) -> None:
        """Print rows of (what, name, details) in columns."""
        width = max(len(name) for _, name, _ in rows)
        for what, name, details in rows:
            self.line(f"  {what:<9}{name:<{width}}  {details}")

    def results(self, columns: Sequence[str], rows: Mapping[str, Mapping[str, float]]) -> None:
        """Print a table of percentages, one line per row; metrics that a row lacks stay empty."""
        if not self.prints:
            return
        table = Table(box=None, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0))
        table.add_column("", no_wrap=True)
        previous_family = None
        for column in columns:
            family, _, k = column.partition("@")
            heading = display_name(column)
            if family == previous_family:
                heading = f"@{k}"  # kNN@1, @5, @20: the name once
            table.add_column(heading, justify="right", no_wrap=True)
            previous_family = family
        for name, values in rows.items():
            cells = []
            for column in columns:
                cell = ""
                if column in values:
                    cell = f"{100 * values[column]:.1f}"
                cells.append(cell)
            style = None
            if name == "trained":
                style = "bold"
            table.add_row(name, *cells, style=style)
        self.console.print(table)

    def verdict(self, verdict: Mapping[str, Any], remarks: Sequence[str] = ()) -> None:
        """Print remarks on how the numbers were measured, then the verdict's sentence and its advice."""
        for remark in remarks:
            self.line(f"  {remark}")
        self.line()
        self.line(f"  {verdict['sentence']}", style="bold")
        for advice in verdict["advice"]:
            self.line(f"  {advice}")

    @contextmanager
    def status(self, text: str) -> Iterator[None]:
        """Show a spinner with this text while the block runs; off a terminal, print a line a minute."""
        if not self.prints:
            yield
        elif self.console.is_terminal:
            with self.console.status(Text(text)):
                yield
        else:
            with lines_while_running(text, self.line):
                yield

    @contextmanager
    def count(self, text: str, total: int, unit: str = "images", *, done: int = 0) -> Iterator[Callable[[int], None]]:
        """Show a progress bar, off a terminal a line a minute; yield a function that takes how many further items are done.

        Args:
            text: what is done.
            total: number of items.
            unit: what they are.
            done: how many are done at the beginning.
        """
        if not self.prints:
            yield lambda count: None
            return
        if not self.console.is_terminal:
            lines = ProgressLines(self.line)
            lines.begin(done)

            def report(count: int) -> None:
                nonlocal done
                done += count
                lines.report(text, done, total, unit)

            yield report
            return
        columns = [TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn(unit)]
        with Progress(*columns, TimeRemainingColumn(), console=self.console, transient=True) as bar:
            task = bar.add_task(text, total=total, completed=done)
            yield lambda count: bar.advance(task, count)

    @contextmanager
    def stages(self, text: str) -> Iterator[Callable[[str, int, int], None]]:
        """Show a progress bar, off a terminal a line a minute; yield a function of a stage, how much is done, and of how much.

        A bar starts again with every stage; until the first there is a spinner.
        """
        if not self.prints:
            yield lambda stage, done, total: None
            return
        last_stage = None
        if not self.console.is_terminal:
            lines = ProgressLines(self.line)

            def report(stage: str, done: int, total: int) -> None:
                nonlocal last_stage
                if (stage, total) != last_stage:
                    lines.begin(done)
                    last_stage = stage, total
                lines.report(f"{text}: {stage}", done, total)

            yield report
            return
        columns = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn()]
        with Progress(*columns, TimeRemainingColumn(), console=self.console, transient=True) as bar:
            task = bar.add_task(text, total=None)

            def show(stage: str, done: int, total: int) -> None:
                nonlocal last_stage
                if (stage, total) != last_stage:
                    bar.reset(task, total=total, description=f"{text}: {stage}")
                    last_stage = stage, total
                bar.update(task, completed=done)

            yield show

    @contextmanager
    def progress(self, epochs: int, steps_per_epoch: int, first_step: int) -> Iterator["EpochProgress"]:
        """Show the progress of training; yield the object to report steps and epochs to."""
        bar = None
        if self.prints and self.console.is_terminal:
            columns: list[ProgressColumn] = [TextColumn("{task.description}"), BarColumn(bar_width=24)]
            columns.append(TextColumn("{task.fields[numbers]}"))
            bar = Progress(*columns, console=self.console, transient=True)
            bar.start()
        try:
            yield EpochProgress(self, bar, epochs, steps_per_epoch, first_step)
        finally:
            if bar is not None:
                bar.stop()


class EpochProgress:
    """Progress over all epochs: a bar on a terminal; elsewhere a line at the end of each epoch, and a line a minute."""

    def __init__(
        self, logger: Logger, bar: Progress | None, epochs: int, steps_per_epoch: int, first_step: int
    ) -> None:
        self.logger = logger
        self.bar = bar
        self.epochs = epochs
        self.steps_per_epoch = steps_per_epoch
        self.suffix = ""
        """Text at the end of the line, e.g. the last evaluation's kNN."""
        self.task = None
        self._lines = ProgressLines(logger.line)
        if bar is not None:
            self.task = bar.add_task("", total=epochs * steps_per_epoch, completed=first_step, numbers="")

    def step(self, step: int, loss: float, views_per_second: float, seconds_left: float) -> None:
        """Report that `step` steps are done."""
        epoch = min(step // self.steps_per_epoch + 1, self.epochs)
        numbers = _format_numbers(loss, views_per_second, seconds_left, self.suffix)
        if self.bar is None or self.task is None:
            # The line of the epoch says how far its last step is.
            if step % self.steps_per_epoch and self._lines.is_due():
                of_epoch = f"step {step % self.steps_per_epoch:,}/{self.steps_per_epoch:,}"
                self.logger.line(f"epoch {epoch}/{self.epochs}  {of_epoch}  {numbers}")
            return
        self.bar.update(self.task, completed=step, description=f"epoch {epoch}/{self.epochs}", numbers=numbers)

    def epoch(self, epoch: int, loss: float, views_per_second: float, seconds_left: float) -> None:
        """Report that `epoch` epochs are done."""
        if self.bar is None:
            numbers = _format_numbers(loss, views_per_second, seconds_left, self.suffix)
            self.logger.line(f"epoch {epoch}/{self.epochs}  {numbers}")
            self._lines.line_was_printed()

    @contextmanager
    def stages(self, text: str) -> Iterator[Callable[[str, int, int], None]]:
        """As `Logger.stages`, for work between two epochs; on a terminal, where the bar stays, nothing is shown."""
        if self.bar is not None:
            yield lambda stage, done, total: None
            return
        with self.logger.stages(text) as report:
            yield report
        self._lines.line_was_printed()


def _format_numbers(loss: float, views_per_second: float, seconds_left: float, suffix: str) -> str:
    text = f"loss {loss:.3f}"
    # Before the first step of a process the rate is not known.
    if views_per_second > 0:
        left = "?"
        if seconds_left < 1e6:
            left = format_duration(seconds_left)
        text = f"{text}  {views_per_second:,.0f} views/s  {left} left"
    if suffix:
        text = f"{text}  {suffix}"
    return text
