"""What a run says: progress on a terminal, a line an epoch elsewhere, and metrics.jsonl. Only rank 0 speaks."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text


class Logger:
    """The voice of one run.

    Args:
        speaks: whether to print.
        writes: whether to write metrics; by default whoever speaks does.
        console: where to print; standard output by default.
    """

    def __init__(self, speaks: bool = True, writes: bool | None = None, console: Console | None = None) -> None:
        self.speaks = speaks
        self.writes = speaks if writes is None else writes
        self.console = console or Console(highlight=False)
        if not self.console.is_terminal:
            self.console.width = 160  # a file or a pipe has no width of its own
        self._metrics: Path | None = None

    def write_metrics_to(self, path: Path, first_step: int = 0) -> None:
        """Append to this file from now on; rows of steps beyond `first_step` (of an interrupted run) are dropped."""
        self._metrics = path
        if self.writes and path.is_file():
            rows = [line for line in path.read_text().splitlines() if _step(line) <= first_step]
            shortened = path.with_name(f".{path.name}")
            shortened.write_text("".join(f"{line}\n" for line in rows))
            shortened.replace(path)

    def metrics(self, **values: Any) -> None:
        """Append one row to metrics.jsonl."""
        if self.writes and self._metrics is not None:
            with self._metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")

    def line(self, text: str = "", style: str | None = None) -> None:
        """Print a line; nothing in it is taken as markup."""
        if self.speaks:
            self.console.print(Text(text, style=style or ""), soft_wrap=True)

    def facts(self, rows: Sequence[tuple[str, str, str]]) -> None:
        """Print rows of (what, name, details) in columns."""
        width = max(len(name) for _, name, _ in rows)
        for what, name, details in rows:
            self.line(f"  {what:<9}{name:<{width}}  {details}")

    def results(self, columns: Sequence[str], rows: Mapping[str, Mapping[str, float]]) -> None:
        """Print a table of percentages, a row each; what a row lacks stays empty."""
        if not self.speaks:
            return
        table = Table(box=None, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0))
        table.add_column("", no_wrap=True)
        for before, column in zip(("", *columns), columns, strict=False):
            same = before.partition("@")[0] == column.partition("@")[0]
            table.add_column(
                f"@{column.partition('@')[2]}" if same else display_name(column), justify="right", no_wrap=True
            )
        for name, values in rows.items():
            cells = [f"{100 * values[column]:.1f}" if column in values else "" for column in columns]
            table.add_row(name, *cells, style="bold" if name == "trained" else None)
        self.console.print(table)

    def verdict(self, said: Mapping[str, Any], remarks: Sequence[str] = ()) -> None:
        """Print what has to stand beside the numbers, what they mean, and what to change."""
        for remark in remarks:
            self.line(f"  {remark}")
        self.line()
        self.line(f"  {said['sentence']}", style="bold")
        for advice in said["advice"]:
            self.line(f"  {advice}")

    @contextmanager
    def working(self, what: str) -> Iterator[None]:
        """Say on a terminal what takes a while, for as long as it does."""
        if self.speaks and self.console.is_terminal:
            with self.console.status(Text(what)):
                yield
        else:
            yield

    @contextmanager
    def counting(self, what: str, total: int, unit: str = "images") -> Iterator[Callable[[int], None]]:
        """Follow something that is done piece by piece; yields what the number of further pieces is told to."""
        if not (self.speaks and self.console.is_terminal):
            yield lambda count: None
            return
        columns = [TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn(unit)]
        with Progress(*columns, TimeRemainingColumn(), console=self.console, transient=True) as shown:
            task = shown.add_task(what, total=total)
            yield lambda count: shown.advance(task, count)

    @contextmanager
    def progress(self, epochs: int, steps_per_epoch: int, first_step: int) -> Iterator["Epochs"]:
        """Follow the training steps; yields what they are reported to."""
        shown = None
        if self.speaks and self.console.is_terminal:
            columns: list[ProgressColumn | str] = [TextColumn("{task.description}"), BarColumn(bar_width=24)]
            columns += [TextColumn("{task.fields[numbers]}")]
            shown = Progress(*columns, console=self.console, transient=True)
            shown.start()
        try:
            yield Epochs(self, shown, epochs, steps_per_epoch, first_step)
        finally:
            if shown is not None:
                shown.stop()


class Epochs:
    """Progress over all epochs: a bar on a terminal, a line at the end of each epoch elsewhere."""

    def __init__(self, log: Logger, shown: Progress | None, epochs: int, steps_per_epoch: int, first_step: int) -> None:
        self.log, self.shown, self.epochs, self.steps_per_epoch = log, shown, epochs, steps_per_epoch
        self.extra = ""
        total = epochs * steps_per_epoch
        self.task = shown.add_task("", total=total, completed=first_step, numbers="") if shown else None

    def step(self, step: int, loss: float, views_per_second: float, seconds_left: float) -> None:
        """A step is done."""
        if self.shown is not None and self.task is not None:
            epoch = min(step // self.steps_per_epoch + 1, self.epochs)
            numbers = _numbers(loss, views_per_second, seconds_left, self.extra)
            self.shown.update(self.task, completed=step, description=f"epoch {epoch}/{self.epochs}", numbers=numbers)

    def epoch(self, epoch: int, loss: float, views_per_second: float, seconds_left: float) -> None:
        """An epoch is done."""
        if self.shown is None:
            numbers = _numbers(loss, views_per_second, seconds_left, self.extra)
            self.log.line(f"epoch {epoch}/{self.epochs}  {numbers}")


def display_name(metric: str) -> str:
    """How a metric is written: `knn@20` -> `kNN@20`."""
    name, at, k = metric.partition("@")
    return _TITLES.get(metric) or f"{_TITLES.get(name, name)}{at}{k}"


_TITLES = {
    "knn": "kNN",
    "knn_majority": "majority",
    "recall": "Recall",
    "precision": "Precision",
    "view_recall": "View recall",
    "mrr": "MRR",
    "map@r": "mAP@R",
    "r_precision": "R-prec.",
    "linear": "Linear",
    "linear_stage": "Linear stage",
    "few_shot": "Few-shot",
    "few_shot_std": "Few-shot std",
}


def clock(seconds: float) -> str:
    """`0:41`, `12:05`, `3:02:11`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _numbers(loss: float, views_per_second: float, seconds_left: float, extra: str) -> str:
    left = clock(seconds_left) if seconds_left < 1e6 else "?"
    return f"loss {loss:.3f}  {views_per_second:,.0f} views/s  {left} left" + (f"  {extra}" if extra else "")


def _step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 1 << 62
