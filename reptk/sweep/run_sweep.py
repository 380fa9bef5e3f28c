"""Train all runs of a sweep that are not finished, each in a process of its own, and say how each of them ended."""

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from reptk.core.counts import format_count
from reptk.core.errors import EnvironmentProblem, UsageError
from reptk.core.foreign_files import open_regular, require_regular_files
from reptk.core.metric_names import display_name
from reptk.core.progress_lines import format_duration
from reptk.core.threads import num_cpus
from reptk.report.run_files import Run
from reptk.sweep.grid import GridCell
from reptk.sweep.measured_runs import read_measured_run
from reptk.sweep.planned_runs import record_planned
from reptk.sweep.process_pool import EndedJob, Job, run_jobs
from reptk.sweep.sweep_folder import LOGS
from reptk.training import run_folder
from reptk.training.run_status import FINISHED, read_status

MAX_REASON_BYTES = 1 << 16
"""Of the end of a log, in which the reason of a failure is looked for."""

MAX_REASON_CHARACTERS = 600

THREAD_VARIABLE = "OMP_NUM_THREADS"
GPU_VARIABLE = "CUDA_VISIBLE_DEVICES"


class CellRun(NamedTuple):
    """A run of a sweep and its folder."""

    cell: GridCell
    folder: Path

    @property
    def is_started(self) -> bool:
        """Whether there is a run in the folder, finished or not."""
        return (self.folder / "recipe.toml").is_file()

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do in the folder."""
        is_finished = read_status(self.folder)["status"] == FINISHED
        has_results = (self.folder / "results.json").is_file()
        return is_finished and has_results and not run_folder.lacks_report(self.cell.recipe, self.folder)


class _Progress:
    """Prints a line when a run starts and when it ends, and collects the reasons of failures."""

    def __init__(
        self, runs: Sequence[CellRun], num_finished: int, num_slots: int, print_line: Callable[[str], None]
    ) -> None:
        self.print_line = print_line
        self.failed: dict[str, str] = {}
        self._by_label = {run.cell.label: run for run in runs}
        self._total = len(runs)
        self._num_ended = num_finished
        self._num_slots = num_slots
        self._seconds: list[float] = []

    def start(self, job: Job) -> None:
        """A process was started."""
        self.print_line(f"start {job.label}  (log: {job.log})")

    def end(self, ended: EndedJob) -> None:
        """A process has ended."""
        self._num_ended += 1
        head = f"[{self._num_ended}/{self._total}] {ended.job.label}"
        result: Run | str = read_measured_run(self._by_label[ended.job.label].folder, ended.job.label)
        if ended.code != 0:
            result = failure_reason(ended)
        if isinstance(result, str):
            self.failed[ended.job.label] = result
            self.print_line(f"{head}  failed: {result}")
            return
        self._seconds.append(ended.seconds)
        metric = result.results.headline
        value = result.results.main_metrics.get(metric)
        number = ""
        if value is not None:
            number = f"  {display_name(metric)} {100 * value:.1f} %"
        self.print_line(f"{head}{number}  in {format_duration(ended.seconds)}{self._time_left()}")

    def stop(self, num_running: int) -> None:
        """A signal has come."""
        self.print_line(
            f"stopping {format_count(num_running, 'run')}, each saves a checkpoint first; Ctrl-C once more ends them now"
        )

    def _time_left(self) -> str:
        num_left = self._total - self._num_ended
        if num_left == 0:
            return ""
        mean_seconds = sum(self._seconds) / len(self._seconds)
        return f", about {format_duration(mean_seconds * num_left / self._num_slots)} left"


def train_all(
    runs: Sequence[CellRun],
    out: Path,
    slots: Sequence[Mapping[str, str]],
    *,
    options: Sequence[str],
    print_line: Callable[[str], None],
) -> dict[str, str]:
    """Train every run that is not finished; those that were stopped or killed are resumed from their last checkpoint.

    Args:
        runs: of the sweep.
        out: its folder, which exists.
        slots: environment variables of the runs that are trained at a time; see `slots_of`.
        options: further arguments of `python -m reptk.recipe`, e.g. `--plugin my_loss.py`.
        print_line: prints a line.

    Returns:
        The reasons of those that failed, by label.

    Raises:
        Stopped: a signal has stopped the sweep; its runs are saved.
        EnvironmentProblem: what is in the folder cannot be written to.
    """
    _prepare_logs(out)
    record_planned(out, [run.cell for run in runs])
    jobs = []
    for run in runs:
        if not run.is_finished:
            run.folder.parent.mkdir(exist_ok=True)
            command = [sys.executable, "-m", "reptk.sweep.run_cell", str(os.getpid())]
            command += [run.cell.source, *run.cell.overrides, *options, "--out", str(run.folder)]
            jobs.append(Job(run.cell.label, command, out / LOGS / f"{run.folder.name}.log"))
    progress = _Progress(runs, len(runs) - len(jobs), min(len(slots), max(1, len(jobs))), print_line)
    try:
        run_jobs(jobs, slots, on_start=progress.start, on_end=progress.end, on_stop=progress.stop)
    except KeyboardInterrupt:  # a signal
        num_finished = sum(run.is_finished for run in runs)
        print_line(
            f"stopped; {num_finished} of {format_count(len(runs), 'run')} finished. The same command resumes the others"
        )
        raise
    return progress.failed


def _prepare_logs(out: Path) -> None:
    """Create the folder of the logs.

    Raises:
        EnvironmentProblem: something in the folder of the sweep is no file, so that writing to it would wait for ever or reach
            a file elsewhere.
    """
    logs = out / LOGS
    try:
        logs.mkdir(exist_ok=True)
        require_regular_files(out)
        require_regular_files(logs)
    except OSError as cause:
        raise EnvironmentProblem(f"cannot write the sweep to {out}: {cause}") from cause
    for path in logs.iterdir():
        if path.is_symlink():
            raise EnvironmentProblem(f"cannot write the log {path}: it is a link to another file; remove it")


def slots_of(num_jobs: int | None, gpus: str | None, devices: Sequence[str] = ()) -> list[dict[str, str]]:
    """Return the environment variables of each of the runs that are trained at a time.

    The threads of this machine are divided among them, unless OMP_NUM_THREADS is set already.

    Args:
        num_jobs: at a time; None for one, or for one on each GPU.
        gpus: numbers of GPUs as torch counts them, with commas between them; a run on each. None: no choice of a GPU.
        devices: `train.device` of the runs.

    Raises:
        UsageError: `gpus` are no numbers, or the device of a run is fixed.
        EnvironmentProblem: there is no such GPU.
    """
    slots: list[dict[str, str]] = []
    if gpus is None:
        slots = [{} for _ in range(num_jobs or 1)]
    else:
        for device in devices:
            if device not in ("auto", "cuda"):
                raise UsageError(
                    f"--gpus chooses the device of every run, and train.device={device} fixes it; leave one out"
                )
        slots = [{GPU_VARIABLE: name} for name in _gpu_names(gpus)]
    if len(slots) > 1 and THREAD_VARIABLE not in os.environ:
        threads = max(1, num_cpus() // len(slots))
        for slot in slots:
            slot[THREAD_VARIABLE] = str(threads)
    return slots


def failure_reason(ended: EndedJob) -> str:
    """Return why a process has failed: the error that it has printed, else its last line, or the signal that has killed it."""
    if ended.code < 0:
        name = _signal_name(-ended.code)
        if name == "SIGKILL":
            return "killed by SIGKILL, as the system does when the memory is full; the same command resumes the run"
        return f"killed by {name}; the same command resumes the run"
    lines = _new_lines(ended)
    for number in reversed(range(len(lines))):
        if lines[number].startswith("error: "):
            text = "\n".join(lines[number:]).removeprefix("error: ")
            break
    else:
        text = f"exit code {ended.code}"
        if lines:
            text = f"{text}: {lines[-1]}"
    if len(text) > MAX_REASON_CHARACTERS:
        text = f"{text[:MAX_REASON_CHARACTERS]}..."
    return text


def _new_lines(ended: EndedJob) -> list[str]:
    """Return the lines at the end of the log that are not empty."""
    try:
        with open_regular(ended.job.log) as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(ended.log_begin, end - MAX_REASON_BYTES))
            content = file.read(MAX_REASON_BYTES)
    except OSError:
        return []
    text = content.decode("utf-8", "replace")
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _gpu_names(gpus: str) -> list[str]:
    import torch

    numbers = gpus.split(",")
    for number in numbers:
        if not number.isdecimal() or numbers.count(number) > 1:
            raise UsageError(f"--gpus takes different numbers with commas between them, e.g. 0,1, got {gpus!r}")
        if int(number) >= torch.cuda.device_count():
            raise EnvironmentProblem(
                f"--gpus {gpus}: there is no GPU {number}; torch finds {torch.cuda.device_count()}"
            )
    visible = os.environ.get(GPU_VARIABLE)
    if not visible:
        return numbers
    # The variable may hide GPUs, and torch counts those that are left.
    names = visible.split(",")
    return [names[int(number)].strip() for number in numbers]
