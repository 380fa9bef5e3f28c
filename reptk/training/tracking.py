"""The trackers of a run: built from its recipe on every rank, used on rank 0, and ended with the run however it ends."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reptk.config import Recipe
from reptk.config import build as build_part
from reptk.config.registry import TRACKERS
from reptk.core import distributed
from reptk.core.console import Logger
from reptk.core.errors import EnvironmentProblem
from reptk.core.foreign_files import read_json
from reptk.trackers import Tracker, TrackerFeed, read_rows


def build_trackers(recipe: Recipe) -> tuple[dict[str, Tracker], list[str]]:
    """Build the trackers that a recipe switches on, on any rank: wrong arguments are an error of all of them.

    Returns:
        Trackers by name, and a line about each whose package is not installed, which is left out.

    Raises:
        UsageError: a tracker refuses its arguments.
    """
    trackers, problems = {}, []
    for name, table in recipe.active_trackers.items():
        try:
            trackers[name] = build_part(TRACKERS, {"name": name, **table})
        except EnvironmentProblem as problem:
            problems.append(f"{problem}. The run continues without it")
    return trackers, problems


@contextmanager
def tracked(trackers: Mapping[str, Tracker], folder: Path, logger: Logger) -> Iterator[TrackerFeed]:
    """Yield what feeds the trackers of a run, and end it with the block: finished, stopped or failed.

    Args:
        trackers: by name; ranks other than 0 use none.
        folder: the run's, with results.json and perhaps report.html at the end of the block.
        logger: that writes metrics.jsonl.
    """
    if not distributed.is_main():
        trackers = {}
    feed = TrackerFeed(trackers, logger.line)
    try:
        yield feed
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            feed.finish("stopped")
        else:
            feed.finish("failed")
        raise
    if trackers:
        with logger.status(f"sending the last rows to {', '.join(trackers)}"):
            feed.finish("finished", _summary(folder), _files(folder))


def start_tracking(feed: TrackerFeed, recipe: Recipe, folder: Path, logger: Logger) -> None:
    """Begin or continue the curves of a run whose state is restored, and pass on what the logger writes from here.

    Args:
        feed: of the run.
        recipe: its recipe, which the services show.
        folder: the run's.
        logger: that writes metrics.jsonl, cut to the rows that remain.
    """
    config = recipe.model_dump(mode="json", exclude_none=True, exclude={"expect", "trackers"})
    feed.start(folder, recipe.title, config, read_rows(folder, logger.metrics_rows))
    logger.metrics_listener = feed.log_row


def _summary(folder: Path) -> dict[str, float]:
    """Return the metrics of results.json as "row/metric"; none if it cannot be read."""
    try:
        metrics: Mapping[str, Any] = read_json(folder / "results.json")["metrics"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    summary = {}
    for row, values in metrics.items():
        for name, value in values.items():
            summary[f"{row}/{name}"] = value
    return summary


def _files(folder: Path) -> list[Path]:
    report = folder / "report.html"
    if report.is_file():
        return [report]
    return []
