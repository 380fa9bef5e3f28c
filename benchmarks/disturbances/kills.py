"""Rows that kill runs at random moments, and type the same command again until they finish."""

import os
import signal
import time

from disturbances.bench import Bench, Case, Row, wait_until
from disturbances.commands import HangsError, Process, execute, marked_processes, torchrun_line, wait_as_launcher
from disturbances.outcome import read_status, saved_step, unreadable_files

RANDOM_RECIPES = ("byol_batchnorm", "moco_stochastic_depth")

IMPORT_SECONDS = 5.0
"""Of a process that imports torch anew; the first kills come after about that time."""

STARTS = 40
"""After so many starts a run that does not finish counts as one that never will."""


def random_kills(bench: Bench, kills: int, executed: int = 4) -> Row:
    """SIGKILL a single process at random moments.

    Args:
        kills: how many.
        executed: how many of them come to processes that are not forked.
    """
    row = Row("SIGKILL at a random moment, one process")
    number = 0
    while row.cases < kills:
        case = bench.case(RANDOM_RECIPES[number % len(RANDOM_RECIPES)])
        case.names_no_folder = number % 3 == 2
        number += 1
        is_forked = row.cases < kills - executed
        _kill_until_finished(bench, row, case, kills, is_forked)
    row.notes.append(f"{number} runs; {min(executed, kills)} kills of processes that were not forked")
    return row


def _kill_until_finished(bench: Bench, row: Row, case: Case, kills: int, is_forked: bool) -> None:
    reference = bench.reference(case.recipe_name)
    problems = []
    for _ in range(STARTS):
        step = saved_step(case.run)
        delay = bench.random.uniform(0.0, 1.5 * reference.seconds)
        if is_forked:
            process = bench.start(case.command())
        else:
            process = execute(case.command().line(), case.folder)
            delay += IMPORT_SECONDS
        is_to_be_killed = row.cases < kills
        if not is_to_be_killed:
            process.wait()
        elif not process.ends_within(delay):
            process.send(signal.SIGKILL)
            process.wait()
        if process.exit_code != -signal.SIGKILL:
            break
        row.cases += 1
        problems += unreadable_files(case.run)
    problems += bench.end_problems(case, process, reference, step)
    _record(bench, row, case, problems)


def _record(bench: Bench, row: Row, case: Case, problems: list[str]) -> None:
    if problems:
        row.problems += [f"{case.folder.name} ({case.recipe_name}): {problem}" for problem in problems]
    else:
        bench.forget(case)


def rank_kills(bench: Bench, kills: int, ranks: int) -> Row:
    """SIGKILL a random rank, or all of them, at random moments; the launcher is this program."""
    row = Row(f"SIGKILL of a rank or of all, {ranks} ranks")
    number = 0
    while row.cases < kills:
        recipe = RANDOM_RECIPES[number % len(RANDOM_RECIPES)]
        number += 1
        reference = bench.reference(recipe, ranks=ranks)
        case = bench.case(recipe)
        problems = []
        for _ in range(STARTS):
            step = saved_step(case.run)
            processes = bench.start_ranks(case.command(), ranks)
            is_killed = row.cases < kills and _kill_ranks(bench, processes, reference.seconds)
            problems += _wait_for_ranks(processes)
            if not is_killed:
                break
            row.cases += 1
            problems += unreadable_files(case.run)
        problems += bench.end_problems(case, processes[0], reference, step)
        _record(bench, row, case, problems)
    row.notes.append(f"{number} runs")
    return row


def _kill_ranks(bench: Bench, processes: list[Process], seconds: float) -> bool:
    """Kill a random rank or all at a random moment; return False if one has ended before."""
    delay = bench.random.uniform(0.0, 1.5 * seconds)
    victims = bench.random.choice([processes, *([process] for process in processes)])
    deadline = time.monotonic() + delay
    while time.monotonic() < deadline:
        if any(process.has_ended() for process in processes):
            return False
        time.sleep(0.005)
    for process in victims:
        process.send(signal.SIGKILL)
    return True


def _wait_for_ranks(processes: list[Process]) -> list[str]:
    try:
        wait_as_launcher(processes)
    except HangsError as error:
        return [str(error)]
    return []


def silent_rank(bench: Bench, ranks: int) -> Row:
    """SIGKILL one rank while training; the others get no signal, and have to notice, and to name it."""
    row = Row("a rank is killed and the others get no signal")
    reference = bench.reference("byol_batchnorm", ranks=ranks)
    for victim in range(ranks):
        row.cases += 1
        case = bench.case("byol_batchnorm")
        processes = bench.start_ranks(case.command(), ranks)
        wait_until(lambda: saved_step(case.run) >= 3, 60.0)  # noqa: B023 - called within this round
        processes[victim].send(signal.SIGKILL)
        problems = []
        try:
            codes = wait_as_launcher(processes, 60.0, sends_signal=False)
        except HangsError as error:
            problems.append(str(error))
        else:
            codes[victim] = 4
            status = read_status(case.run)
            if codes != [4] * ranks:
                problems.append(f"exit codes {codes} instead of 4")
            if status.get("status") != "failed" or status.get("rank") != victim:
                problems.append(f"rank {victim} was killed, and status.json says {status}")
        step = saved_step(case.run)
        processes = bench.start_ranks(case.command(), ranks)
        problems += _wait_for_ranks(processes)
        problems += bench.end_problems(case, processes[0], reference, step)
        _record(bench, row, case, problems)
    return row


def torchrun_kills(bench: Bench, ranks: int, rounds: int) -> Row:
    """Under the real torchrun: kill a rank, the launcher alone, or everything; then the same command."""
    row = Row(f"torchrun, {ranks} ranks: SIGKILL of a rank, of the launcher, of all")
    reference = bench.reference("byol_batchnorm", ranks=ranks)
    for _ in range(rounds):
        for what in ("a rank", "the launcher", "all"):
            row.cases += 1
            case = bench.case("byol_batchnorm")
            line = torchrun_line(case.command(), ranks)
            problems = _kill_below_torchrun(bench, case, line, what)
            step = saved_step(case.run)
            # At once: after its launcher was killed, a rank may still be writing.
            process = execute(line, case.folder)
            process.wait()
            problems += bench.end_problems(case, process, reference, step)
            _record(bench, row, case, [f"{what}: {problem}" for problem in problems])
    return row


def _kill_below_torchrun(bench: Bench, case: Case, line: list[str], what: str) -> list[str]:
    process = execute(line, case.folder)
    wanted_step = bench.random.choice([3, 6, 9])
    wait_until(lambda: saved_step(case.run) >= wanted_step or process.has_ended(), 180.0, poll_seconds=0.05)
    workers = [pid for pid in marked_processes(case.folder) if pid != process.pid and _is_worker(pid)]
    if not workers:
        return [f"there is no rank to kill: {process.last_line()}"]
    victims = {"a rank": [bench.random.choice(workers)], "the launcher": [], "all": workers}[what]
    if what != "a rank":
        process.send(signal.SIGKILL)
    for pid in victims:
        _kill(pid)
    code = process.wait(60.0)
    if code == 0:
        return ["it succeeds"]
    return unreadable_files(case.run)


def _is_worker(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123
            return b"\0RANK=" in b"\0" + file.read()
    except OSError:
        return False


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
