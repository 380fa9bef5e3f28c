"""Checkpoints during training: when they are due, and a thread that writes them from a copy while training continues."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from reptk.core.errors import EnvironmentProblem, NumericalError
from reptk.training import checkpoint
from reptk.training.output_checks import check_finite_weights

MAX_FAILED_WRITES = 3
"""Checkpoints in a row that cannot be written before training stops. Until then the last one remains."""


class CheckpointInterval(NamedTuple):
    """After how much training a checkpoint is written: whichever comes first. 0 for never."""

    epochs: int = 1
    steps: int = 0
    minutes: float = 0.0

    def is_due(self, step: int, steps_per_epoch: int) -> bool:
        """Return whether a checkpoint is due after so many steps, whatever the time."""
        if self.steps and step % self.steps == 0:
            return True
        return self.epochs > 0 and step % (self.epochs * steps_per_epoch) == 0


class CheckpointWriter:
    """Writes the checkpoints of a run.

    Args:
        folder: the run's `checkpoints`.
        interval: after how much training one is written.
        keep: how many of the last checkpoints remain.
        keep_initial: whether that of step 0 remains, too.
        details: further entries of each manifest.
        warn: prints a line.
        written: called with the step of every checkpoint that is complete on disk, in the writing thread.
    """

    def __init__(
        self,
        folder: Path,
        interval: CheckpointInterval,
        *,
        keep: int,
        keep_initial: bool = False,
        details: dict[str, Any],
        warn: Callable[[str], None],
        written: Callable[[int], None],
    ) -> None:
        self.folder = folder
        self.last_step: int | None = None
        """Step of the newest checkpoint that was written or is being written by this process."""
        self._interval = interval
        self._keep = keep
        self._keep_initial = keep_initial
        self._details = details
        self._warn = warn
        self._written = written
        self._last_time = time.monotonic()
        self._num_failed = 0
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="reptk-checkpoint")
        self._pending: Future[None] | None = None

    def is_time_due(self) -> bool:
        """Return whether the last checkpoint is `interval.minutes` ago."""
        minutes = self._interval.minutes
        return minutes > 0 and time.monotonic() - self._last_time >= 60 * minutes

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Copy the state, and write it in the background. Waits if the checkpoint before is still being written.

        Args:
            step: number of steps done.
            state: nested dicts and lists of tensors, which may change afterwards, and plain values.

        Raises:
            EnvironmentProblem: `MAX_FAILED_WRITES` checkpoints in a row could not be written.
            NumericalError: a weight of the checkpoint before is NaN or infinite; it was not written.
        """
        self._collect()
        copied = _copy_to_cpu(state)
        self._pending = self._pool.submit(self._write, step, copied)
        self.last_step = step
        self._last_time = time.monotonic()

    def mark_best(self) -> None:
        """Let the last checkpoint, which is on disk, remain until there is a better one."""
        try:
            checkpoint.mark_best(self.folder, self.last_step)
        except (OSError, EnvironmentProblem) as cause:
            self._warn(f"cannot mark the checkpoint of step {self.last_step} as the best: {cause}")

    def wait(self) -> None:
        """Wait until the last checkpoint is on disk.

        Raises:
            EnvironmentProblem: it could not be written.
            NumericalError: a weight is NaN or infinite.
        """
        self._collect(must_succeed=True)

    def wait_or_warn(self) -> None:
        """Wait until the last checkpoint is on disk, or print why it cannot be written."""
        try:
            self._collect()
        except (EnvironmentProblem, NumericalError) as error:
            self._warn(str(error))

    @property
    def is_writing(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._pending is not None and not self._pending.done()

    def close(self) -> None:
        """Wait for the thread, whatever became of the last checkpoint."""
        self._pool.shutdown(wait=True)

    def _collect(self, *, must_succeed: bool = False) -> None:
        """Wait for the checkpoint that is being written; warn if it could not be written."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        try:
            pending.result()
        except (OSError, RuntimeError, EnvironmentProblem) as cause:
            self._num_failed += 1
            problem = f"cannot save a checkpoint in {self.folder}: {cause}"
            if must_succeed or self._num_failed >= MAX_FAILED_WRITES:
                raise EnvironmentProblem(problem) from cause
            self.last_step = None
            self._warn(
                f"{problem}. Training continues, and the checkpoint before it remains; the next one is tried as usual"
            )
            return
        self._num_failed = 0

    def _write(self, step: int, state: dict[str, Any]) -> None:
        check_finite_weights(state["method"], step)
        checkpoint.save(
            self.folder, step, state, keep=self._keep, keep_initial=self._keep_initial, details=self._details
        )
        self._written(step)


def _copy_to_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        # `copy=True`, since a tensor on the CPU would be returned as it is.
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copy_to_cpu(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_copy_to_cpu, value))
    return value


class NoCheckpoints:
    """The writer of ranks other than 0, which hold the same state and write nothing."""

    last_step: int | None = None

    def is_time_due(self) -> bool:
        return False

    def save(self, step: int, state: dict[str, Any]) -> None:
        pass

    def mark_best(self) -> None:
        pass

    def wait(self) -> None:
        pass

    def wait_or_warn(self) -> None:
        pass

    @property
    def is_writing(self) -> bool:
        return False

    def close(self) -> None:
        pass
