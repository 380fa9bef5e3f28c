"""What a tracker is: an adapter that is called with the rows of metrics.jsonl, in a thread of its own."""

import importlib.util
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from reptk.core.errors import EnvironmentProblem

End = Literal["finished", "stopped", "failed"]
"""How a run ended: by itself, by a signal (it may be resumed), or by an error."""


class TrackedRun(NamedTuple):
    """A run that begins or is resumed.

    folder: the run's.
    name: its recipe and overrides, e.g. "supcon_digits loss.temperature=0.2".
    config: its complete recipe, as nested tables of plain values.
    state: what `Tracker.start` returned when the run began; empty if it begins now.
    """

    folder: Path
    name: str
    config: Mapping[str, Any]
    state: Mapping[str, str]


class Tracker(Protocol):
    """An adapter of a service. Its factory takes the arguments of `[trackers.NAME]`, and connects to nothing yet.

    All methods are called in one thread, which is not the main one, and may wait for the service. Whatever they raise ends the
    tracking with a warning; the run continues.
    """

    accepts_rows_again: bool = False
    """Whether the service records a row whose number or step it has already, next to the old one.

    Otherwise, when a run has gone back to an earlier step, rows that replace those that the service has are not logged."""

    @abstractmethod
    def start(self, run: TrackedRun) -> Mapping[str, str]:
        """Begin a curve, or continue that of `run.state`.

        Returns:
            What identifies the curve, e.g. `{"id": "7c0f"}`, for `run.state` when the run is resumed. The entry "place", an
            address or a command, is shown to the user.
        """

    @abstractmethod
    def log(self, number: int, row: Mapping[str, float]) -> None:
        """Record a row of metrics.jsonl.

        Args:
            number: of the row, from 1; no number is logged twice, unless `forget` has returned True, or the run has gone back
                to an earlier step and `accepts_rows_again`.
            row: numbers by name, with "step", the number of optimizer steps done.
        """

    def forget(self, step: int) -> bool:
        """Remove all rows of at least this step, which a resumed run logs again.

        Returns:
            Whether they are removed. By default they remain, and those that were logged are not logged again.
        """
        return False

    @abstractmethod
    def finish(self, end: End, summary: Mapping[str, float], files: Sequence[Path]) -> None:
        """Send everything, and end the connection.

        Args:
            end: how the run ended.
            summary: final numbers by name, e.g. "trained/knn@20"; empty unless the run has finished.
            files: e.g. report.html, for services that store files; empty unless the run has finished.
        """


def require_package(tracker: str, module: str) -> None:
    """Check that the package of a tracker is installed, without importing it.

    Raises:
        EnvironmentProblem: it is not.
    """
    if importlib.util.find_spec(module) is None:
        raise EnvironmentProblem(
            f'tracker {tracker!r} needs the package {module}, which is not installed: pip install "reptk[{tracker}]"'
        )
