"""A run at one of its checkpoints: at the newest one when it is resumed, and at the last one after a step that is left out."""

from collections.abc import Collection

from reptk.core import distributed
from reptk.core.errors import NonFiniteStep
from reptk.trackers import read_rows
from reptk.training import checkpoint, run_folder
from reptk.training.optim import learning_rate
from reptk.training.parts import Parts
from reptk.training.run_process import RunProcess
from reptk.training.run_status import RunStatus
from reptk.training.same_run import check_same_ranks
from reptk.training.state import RunState, restore


def go_back(parts: Parts, state: RunState, process: RunProcess, error: NonFiniteStep) -> RunState:
    """Restore the last checkpoint, and return its state, in which the step of an error is left out.

    Raises:
        NonFiniteStep: no (further) step may be left out.
    """
    maximum = parts.settings.max_omitted_steps
    omitted = [*state.omitted_steps, error.step]
    process.writer.wait_or_warn()
    # Without collectives if another rank may not have the error.
    is_of_all_ranks = error.is_agreed or distributed.world_size() == 1
    if len(omitted) > maximum or not is_of_all_ranks:
        advice = f"The last checkpoint is that of step {checkpoint.last_step(process.folder / 'checkpoints')}"
        if not maximum:
            advice += "; train.max_omitted_steps=1 would go back to it and leave this step out"
        raise error.with_sentence(advice) from error
    saved = checkpoint.chosen_by_rank_0(lambda: checkpoint.load_newest(process.folder / "checkpoints"))
    if saved is None:
        raise error
    step = saved.manifest["step"]
    restored = restore(parts, saved.state)
    restored.omitted_steps = omitted
    process.logger.write_metrics_to(process.folder / "metrics.jsonl", restored.metrics_rows)
    process.feed.rewind(read_rows(process.folder, process.logger.metrics_rows))
    process.logger.line(
        f"{error}. Back to step {step}, and step {error.step + 1} is left out, {len(omitted)} of {maximum}"
    )
    return restored


def restore_newest(
    parts: Parts, run: run_folder.OpenedRun, status: RunStatus, allow: Collection[str], schedule: str
) -> tuple[RunState, bool]:
    """Restore the newest checkpoint that is intact, and print what differs from the run that wrote it.

    Returns:
        The state, and whether there was a checkpoint.
    """
    settings, logger = parts.settings, status.logger
    saved = checkpoint.chosen_by_rank_0(lambda: checkpoint.load_newest(run.folder / "checkpoints"))
    for line in run_folder.lost_checkpoints(run.folder, saved):
        logger.line(line)
    if saved is None:
        return RunState(), False
    ranks_before = int(saved.manifest.get("ranks", distributed.world_size()))
    note = check_same_ranks(ranks_before, distributed.world_size(), parts.method, allow, settings.drop_path)
    if note is not None:
        logger.line(f"note: {note}")
    state = restore(parts, saved.state)
    status.step = state.step
    if settings.epochs != run.recorded_epochs:
        logger.line(_new_length_message(parts, state, run.recorded_epochs, schedule))
    return state, True


def _new_length_message(parts: Parts, state: RunState, recorded_epochs: int, schedule: str) -> str:
    """Return how the learning rate continues if a resumed run has another number of epochs than it had."""
    settings = parts.settings
    before = learning_rate(parts.optimizer)  # of the last step, restored from the checkpoint
    parts.schedule.set_step(state.step)
    after = learning_rate(parts.optimizer)
    message = f"train.epochs={settings.epochs} instead of {recorded_epochs}"
    scheduled_keys = parts.scheduled_values.keys_of_whole_run
    if scheduled_keys:
        message += f" (also the length of the schedule of {' and '.join(scheduled_keys)})"
    if schedule == "constant":
        return f"{message}: the learning rate stays {after:g}"
    done = state.step / settings.steps_per_epoch
    return (
        f"{message}: the learning rate follows the {schedule} of {settings.epochs} epochs from here, epoch {done:g}: it goes "
        f"from {before:.3g} to {after:.3g}. The result is not that of {settings.epochs} epochs in one run"
    )
