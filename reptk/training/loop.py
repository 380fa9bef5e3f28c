"""The training loop, in the order in which it runs: `train` evaluates two baselines, trains, evaluates and reports."""

import signal
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from torch import nn

import reptk
from reptk.config import Recipe
from reptk.config.run_commands import resume_command
from reptk.core import distributed, environment
from reptk.core.console import EpochProgress, Logger
from reptk.core.errors import NonFiniteStep, UsageError
from reptk.core.stop_signals import Stopped, StopSignals, handled_stop_signals
from reptk.data import DevicePrefetcher
from reptk.data.bad_samples import BadSamples
from reptk.data.fingerprint import fingerprint
from reptk.methods import Batch
from reptk.trackers import TrackerFeed
from reptk.training import run_folder
from reptk.training.build import build
from reptk.training.checkpoint_writer import CheckpointWriter, NoCheckpoints
from reptk.training.compiler_errors import explain_compiler_errors
from reptk.training.describe import describe, dropped_images_note, random_weights_note, unused_share_note
from reptk.training.epoch import EpochEnd
from reptk.training.evaluation import (
    evaluate_baselines,
    evaluate_now,
    report_results,
    run_results,
    save_run_model,
    trained_metrics,
    write_report,
)
from reptk.training.final_weights import take_best, take_pretrained_if_better
from reptk.training.load_data import load_data
from reptk.training.memory_advice import explain_out_of_memory
from reptk.training.optim import learning_rate
from reptk.training.parts import Parts
from reptk.training.rank_ends import RankEnds
from reptk.training.restore_run import go_back, restore_newest
from reptk.training.run_process import RunProcess
from reptk.training.run_record import finished_details
from reptk.training.run_status import RUNNING, RunStatus, recorded_status
from reptk.training.same_run import ALLOWABLE
from reptk.training.state import RunState
from reptk.training.step import train_step, wrap_in_ddp
from reptk.training.tracking import build_trackers, start_tracking, tracked

DAY_SECONDS = 24 * 3600.0


def train(
    recipe: Recipe,
    out: str | Path | None = None,
    *,
    resume: run_folder.Resume = None,
    allow: Collection[str] = (),
    logger: Logger | None = None,
    notes: Sequence[str] = (),
) -> dict[str, float]:
    """Train a recipe and evaluate it, or resume a run that was stopped or killed.

    A run that is resumed ends in the weights of the run that nothing has disturbed: bit for bit on the CPU with the same number
    of threads.

    Args:
        recipe: from `load`.
        out: the run's folder; None for the next unused `runs/NAME/N`.
        resume: None: resume the run in `out` if there is one of this recipe. "auto": without `out`, too, with the last run
            of this recipe under `runs/`. True: there has to be one. False: there must not be one.
        allow: what may have changed since the run was started: "data", "ranks".
        logger: where to print and log; standard output by default.
        notes: lines to print below the description of the run, e.g. `reptk.config.override_notes`.

    Returns:
        The trained encoder's metrics, e.g. `{"knn@20": 0.75, ...}`, as shares between 0 and 1.

    Raises:
        ReptkError: its subclass says what has to change; status.json in the run's folder records the reason.
        KeyboardInterrupt: a signal stopped the run, which is saved (`reptk.core.stop_signals.Stopped`).
    """
    for difference in allow:
        if difference not in ALLOWABLE:
            raise UsageError(f"allow={difference!r} is unknown; it takes {', '.join(ALLOWABLE)}")
    with handled_stop_signals() as signals, run_folder.RunClaim() as claim:
        device = distributed.setup(recipe.train.device)
        logger = logger or Logger(prints=distributed.is_main())
        # Everything that may be wrong with the recipe or the data is found before there is a folder.
        parts = build(recipe, load_data(recipe, logger), device)
        trackers, tracker_notes = build_trackers(recipe)

        def open_run() -> run_folder.OpenedRun:
            data = fingerprint(parts.data, recipe.train.check_files)
            run = claim.open(
                recipe,
                out,
                resume=resume,
                data=data,
                steps_per_epoch=parts.settings.steps_per_epoch,
                report=logger.line,
                allowed=allow,
            )
            if run.state != run_folder.COMPLETE:
                RankEnds(run.folder, 0, distributed.world_size()).clear()
            return run

        # Hashes of all files (train.check_files=content) may take hours.
        distributed.set_timeout(DAY_SECONDS, device)
        run = distributed.run_on_main(open_run)
        distributed.set_timeout(distributed.LONG_TIMEOUT_SECONDS, device)
        if run.state == run_folder.COMPLETE:
            logger.line(f"already complete: {run.folder / 'results.json'}")
            if distributed.run_on_main(lambda: run_folder.lacks_report(recipe, run.folder)):
                write_report(parts, run.folder, logger)
            return trained_metrics(run.folder)
        status = RunStatus(run.folder, logger)
        with tracked(trackers, run.folder, logger) as feed:
            with recorded_status(status, signals, resume_command(run.folder, recipe.plugins)):
                metrics = _train_in_folder(recipe, parts, run, status, signals, allow, [*notes, *tracker_notes], feed)
            # After the status is "finished": the report is not part of what a run has to achieve.
            if parts.settings.writes_report:
                write_report(parts, run.folder, logger)
        return metrics


def _train_in_folder(
    recipe: Recipe,
    parts: Parts,
    run: run_folder.OpenedRun,
    status: RunStatus,
    signals: StopSignals,
    allow: Collection[str],
    notes: Sequence[str],
    feed: TrackerFeed,
) -> dict[str, float]:
    """Train, evaluate and report in the folder that this process has opened."""
    folder, logger = run.folder, status.logger
    commit = environment.git_commit()  # of the code as it was when the run began
    logger.line(f"reptk {reptk.__version__}  {parts.settings.name}  ->  {folder}", style="bold")
    logger.facts(describe(recipe, parts))
    notes = [*notes, *run.notes, *random_weights_note(recipe), *unused_share_note(recipe, parts)]
    for note in [*notes, *dropped_images_note(parts)]:
        logger.line(f"note: {note}")
    state, is_restored = restore_newest(parts, run, status, allow, recipe.optim.schedule)
    if distributed.is_main():
        status.set(RUNNING)
    process = RunProcess(
        folder=folder,
        logger=logger,
        writer=_checkpoint_writer(parts, status, saved_step=state.step if is_restored else None),
        signals=signals,
        bad_samples=BadSamples(parts.data, logger, folder, parts.device),
        flags=distributed.SharedFlags(parts.device),
        feed=feed,
    )
    logger.write_metrics_to(folder / "metrics.jsonl", state.metrics_rows)
    start_tracking(feed, recipe, folder, logger)
    with closing(process.writer):
        if not is_restored:
            state.baselines = evaluate_baselines(parts, logger)
            # So that they are not evaluated again, and so that a folder that cannot be written fails now.
            process.save(parts, state)
        process.bad_samples.update()
        num_views = parts.settings.views_per_step // recipe.train.batch_size
        with (
            explain_out_of_memory(recipe, num_views=num_views, num_ranks=distributed.world_size()),
            explain_compiler_errors(recipe.train.compile),
        ):
            state = train_until_end(parts, state, process)
        process.save_and_wait(parts, state)
        # In the last step a signal is only recorded.
        signals.raise_if_received()
        # Before the evaluation, which may fail: what was trained is not lost.
        distributed.run_on_main(lambda: save_run_model(parts, folder))
        with logger.stages("trained encoder") as progress:
            trained = evaluate_now(parts, progress=progress)
        process.bad_samples.update()
        trained, final = take_best(parts, state, process, trained)
        results = run_results(parts, state, trained, commit)
        results = take_pretrained_if_better(parts, process, results, final)
        report_results(results, trained, folder, logger)
        status.details = finished_details(results)
    return trained.metrics


def train_until_end(parts: Parts, state: RunState, process: RunProcess) -> RunState:
    """Train to the last step, and return the state there.

    If a value is not finite and the recipe permits it, go back to the last checkpoint, and leave out the step.

    Raises:
        NonFiniteStep: a value is not finite.
        Stopped: a signal has stopped the run, which is saved.
    """
    model = wrap_in_ddp(parts)
    while True:
        try:
            train_loop(parts, model, state, process)
        except NonFiniteStep as error:
            state = go_back(parts, state, process, error)
        else:
            return state


def train_loop(parts: Parts, model: nn.Module, state: RunState, process: RunProcess) -> None:
    """Train from `state.step` to the last step, with the due checkpoints, and the due evaluations after every epoch.

    With early stopping, the last step may come earlier than that of the recipe.

    Args:
        parts: the run's.
        model: the method, or DDP around it.
        state: the run's, which is updated.
        process: that trains.
    """
    settings, logger = parts.settings, process.logger
    model.train()
    end_of_epoch = EpochEnd(parts, state, process)
    end_of_epoch.announce()
    with (
        saved_when_stopped(parts, state, process),
        logger.progress(settings.epochs, settings.steps_per_epoch, state.step) as progress,
        # Closed, so that its threads end with the loop even while a traceback holds this frame.
        closing(parts.loader.batches(state.step, settings.total_steps)) as host_batches,
    ):
        batches = DevicePrefetcher(host_batches, parts.device)
        if state.unfinished_epoch is not None:
            # The run was stopped during the evaluation after this step.
            end_of_epoch.finish(progress)
        state.clock.start()
        for number in range(state.step, settings.total_steps):
            if end_of_epoch.stops_early:
                break
            # A signal is only recorded until the state is consistent, and all ranks have seen it.
            with process.signals.deferred():
                batch = Batch(*next(batches))
                if number not in state.omitted_steps:
                    parts.schedule.set_step(number)
                    parts.scheduled_values.set_step(number)
                    outputs = train_step(parts, model, batch, parts.step(number))
                    state.meter.add(outputs)
                state.step = number + 1
                is_end_of_epoch = state.step % settings.steps_per_epoch == 0
                if state.meter.unread_steps and _is_reading_due(parts, state.step):
                    _report_steps(parts, state, logger, progress)
                if is_end_of_epoch:
                    end_of_epoch.begin(batches.waited())
                is_stopping, is_time_due = process.flags.update(
                    process.signals.received is not None, process.writer.is_time_due()
                )
                must_save = is_stopping or _is_checkpoint_due(parts, state, end_of_epoch)
                if must_save or is_time_due:
                    if state.meter.unread_steps:
                        # A checkpoint holds no step whose loss was not checked.
                        _report_steps(parts, state, logger, progress)
                    process.save(parts, state, must_wait=must_save)
            if is_stopping:
                raise Stopped(process.signals.received or signal.SIGTERM)
            if is_end_of_epoch:
                distributed.set_timeout(distributed.LONG_TIMEOUT_SECONDS, parts.device)
                end_of_epoch.finish(progress)
                process.bad_samples.update()
            # The first step may take minutes, e.g. to compile; each of the others should not.
            distributed.set_timeout(settings.rank_timeout_seconds, parts.device)
    distributed.set_timeout(distributed.LONG_TIMEOUT_SECONDS, parts.device)
    end_of_epoch.log_steps_without_positives()
    end_of_epoch.log_skipped_steps()
    end_of_epoch.log_early_stopping()


@contextmanager
def saved_when_stopped(parts: Parts, state: RunState, process: RunProcess) -> Iterator[None]:
    """If a signal stops the block between two steps, save the last one."""
    try:
        yield
    except Stopped:
        state.clock.stop()
        process.save_and_wait(parts, state)
        raise


def _checkpoint_writer(parts: Parts, status: RunStatus, saved_step: int | None) -> CheckpointWriter | NoCheckpoints:
    """Return the writer of this rank.

    Args:
        parts: the run's.
        status: the run's.
        saved_step: step of the checkpoint that was read.
    """
    if not distributed.is_main():
        return NoCheckpoints()
    writer = CheckpointWriter(
        status.folder / "checkpoints",
        parts.settings.checkpoint_interval,
        keep=parts.settings.keep_checkpoints,
        keep_initial=parts.settings.keeps_initial,
        details={"ranks": distributed.world_size()},
        warn=status.logger.line,
        written=status.checkpoint_written,
    )
    writer.last_step = saved_step
    return writer


def _is_reading_due(parts: Parts, steps_done: int) -> bool:
    """Whether to read the losses after this step. On a GPU this waits for the device, so it is not done after every step."""
    settings = parts.settings
    is_logged = steps_done % settings.log_every_steps == 0
    is_end_of_epoch = steps_done % settings.steps_per_epoch == 0
    return parts.device.type == "cpu" or is_logged or is_end_of_epoch


def _is_checkpoint_due(parts: Parts, state: RunState, end_of_epoch: EpochEnd) -> bool:
    """Whether to save after this step, whatever the time."""
    settings = parts.settings
    if settings.checkpoint_interval.is_due(state.step, settings.steps_per_epoch):
        return True
    if state.step == settings.total_steps:
        return True
    # An evaluation may take long, and so be where a run is stopped.
    return state.step % settings.steps_per_epoch == 0 and end_of_epoch.has_evaluation


def _report_steps(parts: Parts, state: RunState, logger: Logger, progress: EpochProgress) -> None:
    """Check and report the steps since the last reading, and log the last of them if it is due."""
    settings, meter, clock = parts.settings, state.meter, state.clock
    parts.finite_check.read()
    steps = meter.read()
    clock.add(steps * settings.views_per_step)
    progress.step(state.step, meter.loss, clock.views_per_second, state.seconds_left(settings))
    if state.step % settings.log_every_steps:
        return
    counts = {}
    if meter.steps_without_positives:
        counts["steps_without_positives"] = meter.steps_without_positives
    if parts.scaled_optimizer.is_scaling:
        counts["loss_scale"] = parts.scaled_optimizer.scale
        counts["skipped_steps"] = parts.scaled_optimizer.skipped_steps
    logger.metrics(
        step=state.step,
        epoch=state.step / settings.steps_per_epoch,
        loss=meter.loss,
        lr=learning_rate(parts.optimizer),
        views_per_second=round(clock.views_per_second, 1),
        seconds=round(clock.seconds, 2),
        **meter.scalars,
        **parts.scheduled_values.at_step(state.step - 1),
        **counts,
    )
