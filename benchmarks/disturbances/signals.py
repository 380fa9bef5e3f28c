"""A row that sends each signal in each phase of a run: it is saved, and the same command goes on."""

import signal

from disturbances.bench import Bench, Case, Row
from disturbances.commands import Process
from disturbances.outcome import metric_rows, read_status, saved_step, unreadable_files
from disturbances.phases import PHASES, SignalInPhase

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
MAX_DELAY_SECONDS = 0.06
MAX_OCCURRENCE = {"training": 10, "evaluation": 3, "checkpoint": 4}
"""How often a phase occurs in a run, if more than once."""


def signals_in_phases(bench: Bench, rounds: int = 1) -> Row:
    """Send every signal in every phase; the run is saved and goes on."""
    row = Row("SIGTERM, SIGINT, SIGUSR1, SIGUSR2, SIGHUP in every phase")
    finished = 0
    for _ in range(rounds):
        for phase in PHASES:
            for number in SIGNALS:
                row.cases += 1
                finished += _signal_once(bench, row, phase, number)
    row.notes.append(f"{finished} runs had finished when the signal came")
    return row


def _signal_once(bench: Bench, row: Row, phase: str, number: signal.Signals) -> int:
    """Do one case; returns 1 if the run had finished before."""
    recipe = bench.random.choice(["byol_batchnorm", "moco_stochastic_depth"])
    reference = bench.reference(recipe)
    case = bench.case(recipe)
    occurrence = bench.random.randint(1, MAX_OCCURRENCE.get(phase, 1))
    delay = bench.random.uniform(0.0, MAX_DELAY_SECONDS)
    process = bench.start(case.command(), SignalInPhase(phase, occurrence, number, delay))
    process.wait()
    has_finished = read_status(case.run).get("status") == "finished"
    problems = unreadable_files(case.run)
    if not has_finished:
        problems += stop_problems(case, process, number)
    step = saved_step(case.run)
    process = bench.start(case.command())
    process.wait()
    problems += bench.end_problems(case, process, reference, step)
    for problem in problems:
        row.problems.append(f"{case.folder.name} ({recipe}), {number.name} in {phase}: {problem}")
    if not problems:
        bench.forget(case)
    return int(has_finished)


def stop_problems(case: Case, process: Process, number: signal.Signals) -> list[str]:
    """Return what is wrong with how a process has stopped after a signal."""
    problems = []
    expected_code = 143
    if number == signal.SIGINT:
        expected_code = 130
    if process.exit_code != expected_code:
        problems.append(f"exit code {process.exit_code}, not {expected_code}: {process.last_line()}")
    if "Traceback" in process.text():
        problems.append("it prints a traceback")
    if not (case.run / "recipe.toml").is_file():
        return problems  # the signal came before there was a run
    status = read_status(case.run)
    if not status:
        return problems  # the recipe was just being written
    if status.get("status") != "preempted" or status.get("signal") != number.name:
        problems.append(f"status.json says {status}")
    steps = [row["step"] for row in metric_rows(case.run) if "loss" in row]
    last_step = max(steps, default=0)
    if not saved_step(case.run) == status.get("step") == last_step:
        problems.append(
            f"step {last_step} is done, the checkpoint is that of {saved_step(case.run)}, status.json says {status.get('step')}"
        )
    return problems
