"""What a process has besides the state of its run: the folder, where it prints, its checkpoints, and the signals it gets."""

from dataclasses import dataclass
from pathlib import Path

from reptk.core.console import Logger
from reptk.core.distributed import SharedFlags
from reptk.core.stop_signals import StopSignals
from reptk.data.bad_samples import BadSamples
from reptk.trackers import TrackerFeed
from reptk.training.checkpoint_writer import CheckpointWriter, NoCheckpoints
from reptk.training.parts import Parts
from reptk.training.state import RunState, checkpoint_content


@dataclass
class RunProcess:
    """A process that trains a run.

    Args:
        folder: the run's.
        logger: where to print and log.
        writer: of the checkpoints.
        signals: which may ask this process to stop.
        bad_samples: lists the images that cannot be read.
        flags: by which the ranks agree after which step they stop, or save.
        feed: passes the rows of metrics.jsonl on to trackers.
    """

    folder: Path
    logger: Logger
    writer: CheckpointWriter | NoCheckpoints
    signals: StopSignals
    bad_samples: BadSamples
    flags: SharedFlags
    feed: TrackerFeed

    def save(self, parts: Parts, state: RunState, *, must_wait: bool = True) -> None:
        """Write a checkpoint in the background.

        Args:
            parts: the run's.
            state: the run's.
            must_wait: wait if the one before is still being written; otherwise, on a slow disk, there is none of this step.
        """
        if self.writer.is_writing and not must_wait:
            return
        self.logger.flush_metrics()
        state.metrics_rows = self.logger.metrics_rows
        self.writer.save(state.step, checkpoint_content(parts, state))

    def save_and_wait(self, parts: Parts, state: RunState) -> None:
        """Write a checkpoint of this step, unless there is one already, and wait until it is on disk."""
        if self.writer.last_step != state.step:
            self.save(parts, state)
        self.writer.wait()

    def mark_best(self, parts: Parts, state: RunState) -> None:
        """Keep a checkpoint of this step, whose evaluation is the best so far."""
        if self.writer.last_step != state.step:
            self.save(parts, state)
        self.writer.wait_or_warn()
        if self.writer.last_step == state.step:
            self.writer.mark_best()
