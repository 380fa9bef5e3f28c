"""Processes of a sweep: in order, some at a time, all stopped by one signal."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from reptk.core.errors import EnvironmentProblem
from reptk.core.file_locks import is_alive
from reptk.core.stop_signals import Stopped
from reptk.sweep.process_pool import EndedJob, Job, run_jobs
from reptk.sweep.run_sweep import failure_reason

PYTHON = [sys.executable, "-SEc"]


class Recorder:
    """Records what the pool reports."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.ended: list[EndedJob] = []
        self.most_at_once = 0
        self.stopped = 0

    def start(self, job: Job) -> None:
        self.started.append(job.label)
        self.most_at_once = max(self.most_at_once, len(self.started) - len(self.ended))

    def end(self, ended: EndedJob) -> None:
        self.ended.append(ended)

    def stop(self, count: int) -> None:
        self.stopped = count


def run(jobs: list[Job], slots: list[dict[str, str]]) -> Recorder:
    recorder = Recorder()
    run_jobs(jobs, slots, on_start=recorder.start, on_end=recorder.end, on_stop=recorder.stop)
    return recorder


def job(folder: Path, label: str, code: str) -> Job:
    return Job(label, [*PYTHON, code], folder / f"{label}.log")


def test_all_jobs_run_in_order_with_the_variables_of_their_slots(tmp_path: Path) -> None:
    code = "import os; print(os.environ['GPU'])"
    jobs = [job(tmp_path, str(number), code) for number in range(5)]
    recorder = run(jobs, [{"GPU": "a"}, {"GPU": "b"}])
    assert recorder.started == ["0", "1", "2", "3", "4"]
    assert sorted(ended.job.label for ended in recorder.ended) == recorder.started
    assert recorder.most_at_once == 2
    assert {(tmp_path / f"{number}.log").read_text() for number in range(5)} == {"a\n", "b\n"}


def test_a_failure_is_reported_with_its_reason(tmp_path: Path) -> None:
    codes = {
        "error": "print('error: old'); print('warning: a'); print('error: no such\\n  key'); raise SystemExit(2)",
        "exception": "raise ValueError('out of luck')",
        "killed": "import os; os.kill(os.getpid(), 9)",
        "silent": "raise SystemExit(7)",
        "fine": "",
    }
    recorder = run([job(tmp_path, label, code) for label, code in codes.items()], [{}])
    reasons = {ended.job.label: failure_reason(ended) for ended in recorder.ended if ended.code}
    assert reasons["error"] == "no such\n  key"
    assert reasons["exception"] == "exit code 1: ValueError: out of luck"
    assert reasons["killed"].startswith("killed by SIGKILL, as the system does when the memory is full")
    assert reasons["silent"] == "exit code 7"
    assert len(reasons) == 4


def test_the_reason_is_not_that_of_an_earlier_process(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("error: of yesterday\n")
    recorder = run([job(tmp_path, "a", "raise SystemExit(3)")], [{}])
    assert failure_reason(recorder.ended[0]) == "exit code 3"
    assert (tmp_path / "a.log").read_text() == "error: of yesterday\n"


def test_a_signal_stops_all_processes_and_waits_for_them(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, signal, sys, time\n"
        "name = sys.argv[1]\n"
        "def save(*_):\n"
        "    time.sleep(0.3)\n"
        "    pathlib.Path(name + '.saved').touch()\n"
        "    sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "pathlib.Path(name).write_text(str(os.getpid()))\n"
        "time.sleep(60)\n"
    )
    jobs = []
    for number in range(3):
        path = tmp_path / str(number)
        jobs.append(Job(str(number), [*PYTHON, code, str(path)], tmp_path / f"{number}.log"))

    def stop_when_ready() -> None:
        while not all((tmp_path / name).exists() and (tmp_path / name).read_text() for name in "01"):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_when_ready, daemon=True).start()
    recorder = Recorder()
    with pytest.raises(Stopped) as stopped:
        run_jobs(jobs, [{}, {}], on_start=recorder.start, on_end=recorder.end, on_stop=recorder.stop)
    assert stopped.value.exit_code == 143
    assert recorder.stopped == 2
    assert (tmp_path / "0.saved").exists()
    assert (tmp_path / "1.saved").exists()
    assert not (tmp_path / "2").exists(), "no further one is started"


SAVING = (
    "import os, pathlib, signal, sys, time\n"
    "path = pathlib.Path(sys.argv[1])\n"
    "def save(*_):\n"
    "    time.sleep(0.2)\n"
    "    path.with_suffix('.saved').touch()\n"
    "    sys.exit(143)\n"
    "signal.signal(signal.SIGTERM, save)\n"
    "path.write_text(str(os.getpid()))\n"
    "time.sleep(60)\n"
)
"""Writes its process id, and saves a checkpoint when it is stopped."""


def saving_jobs(folder: Path) -> list[Job]:
    """A process that saves itself, one that ends when that is ready, and one whose program does not exist."""
    path = folder / "saving"
    path.touch()
    until_written = f"import os, time\nwhile not os.path.getsize({str(path)!r}): time.sleep(0.01)"
    missing = Job("missing", [str(folder / "gone")], folder / "missing.log")
    return [
        Job("saving", [*PYTHON, SAVING, str(path)], folder / "saving.log"),
        job(folder, "ending", until_written),
        missing,
    ]


def test_a_closed_output_stops_processes_so_that_they_save_themselves(tmp_path: Path) -> None:
    def print_line(*_: object) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        run_jobs(saving_jobs(tmp_path), [{}, {}], on_start=lambda job: None, on_end=print_line, on_stop=print_line)
    assert (tmp_path / "saving.saved").exists()
    assert not is_alive(int((tmp_path / "saving").read_text()))


def test_a_process_that_cannot_be_started_stops_the_others_so_that_they_save_themselves(tmp_path: Path) -> None:
    recorder = Recorder()
    with pytest.raises(EnvironmentProblem, match="cannot start missing"):
        run_jobs(saving_jobs(tmp_path), [{}, {}], on_start=recorder.start, on_end=recorder.end, on_stop=recorder.stop)
    assert recorder.stopped == 1
    assert (tmp_path / "saving.saved").exists()
    assert not is_alive(int((tmp_path / "saving").read_text()))


def test_only_a_second_interrupt_kills_processes_that_do_not_end(tmp_path: Path) -> None:
    path = tmp_path / "saving"
    path.touch()
    code = SAVING.replace("time.sleep(0.2)", "time.sleep(60)")
    until_written = f"import os, time\nwhile not os.path.getsize({str(path)!r}): time.sleep(0.01)"
    jobs = [Job("saving", [*PYTHON, code, str(path)], tmp_path / "saving.log"), job(tmp_path, "ending", until_written)]

    def fail(ended: EndedJob) -> None:
        raise RuntimeError("in the caller")

    def interrupt(count: int) -> None:
        # The first is recorded, the second interrupts the wait.
        threading.Thread(
            target=lambda: [(time.sleep(0.2), os.kill(os.getpid(), signal.SIGINT)) for _ in range(2)]
        ).start()

    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs, [{}, {}], on_start=lambda job: None, on_end=fail, on_stop=interrupt)
    assert not is_alive(int(path.read_text()))
    assert not path.with_suffix(".saved").exists()


def test_no_process_is_left_behind_by_an_exception(tmp_path: Path) -> None:
    code = "import os, pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(60)"
    waiting = Job("waiting", [*PYTHON, code, str(tmp_path / "pid")], tmp_path / "waiting.log")

    def fail(ended: EndedJob) -> None:
        raise RuntimeError("in the caller")

    until_written = f"import os, time\nwhile not os.path.getsize({str(tmp_path / 'pid')!r}): time.sleep(0.01)"
    ending = job(tmp_path, "ending", until_written)
    (tmp_path / "pid").touch()
    with pytest.raises(RuntimeError, match="in the caller"):
        run_jobs([waiting, ending], [{}, {}], on_start=lambda job: None, on_end=fail, on_stop=lambda count: None)
    assert not is_alive(int((tmp_path / "pid").read_text()))
