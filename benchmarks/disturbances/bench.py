"""What every row of chaos.py uses: folders for its cases, commands, and reference runs, which nothing disturbs."""

import random
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from disturbances.commands import RECIPE, Command, Preparation, Process, fork, fork_ranks, marked_processes
from disturbances.outcome import KEPT_CHECKPOINTS, Outcome, differences, read_outcome
from disturbances.recipes import write_recipe

RESUMED = re.compile(r"resumed after step ([0-9]+)")
COMPLETE = "already complete"

TORCHRUN_FILES = "torchelastic_"
"""With this the names of torchrun's own temporary folders begin, of which it leaves one each time."""


@dataclass
class Row:
    """A row of the table: what was done how often, and what was not as it should be."""

    name: str
    cases: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def check(self, is_right: bool, problem: str) -> None:
        """Record a problem unless something is right."""
        if not is_right:
            self.problems.append(problem)


@dataclass
class Case:
    """A folder in which commands run, and the recipe there.

    names_no_folder: the command says `--resume auto` in place of `--out run`.
    """

    folder: Path
    recipe: str
    recipe_name: str
    names_no_folder: bool = False

    @property
    def run(self) -> Path:
        """The folder of the run."""
        if self.names_no_folder:
            return self.folder / "runs" / self.recipe_name / "1"
        return self.folder / "run"

    def command(self, *arguments: str) -> Command:
        """The command of the run, with further arguments."""
        folder = ("--out", "run")
        if self.names_no_folder:
            folder = ("--resume", "auto")
        return Command(RECIPE, (self.recipe, *folder, *arguments), self.folder)


@dataclass
class Reference:
    """A run that nothing has disturbed, and how long it took when forked."""

    run: Path
    outcome: Outcome
    seconds: float


References = dict[tuple[str, ...], Reference]
"""Reference runs by recipe, overrides and number of ranks."""


class Bench:
    """Cases and references below one temporary folder.

    Args:
        folder: empty.
        seed: of the moments at which something happens.
        faults: what every process does before its command, e.g. break something on purpose.
        references: reference runs of another bench, which are used here as well, and those of this one for it.
    """

    def __init__(
        self,
        folder: Path,
        seed: int,
        faults: Sequence[Preparation] = (),
        references: References | None = None,
    ) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self.faults = list(faults)
        self._num_cases = 0
        self._references: References = {}
        if references is not None:
            self._references = references

    def case(self, recipe: str, *overrides: str, file: str | None = None) -> Case:
        """Return a new folder with a recipe in it."""
        self._num_cases += 1
        folder = self.folder / f"case{self._num_cases:04d}"
        folder.mkdir()
        return Case(folder, write_recipe(recipe, folder, *overrides, file=file), recipe)

    def copy(self, case: Case) -> Case:
        """Return a copy of a case with all files in their present state."""
        self._num_cases += 1
        folder = self.folder / f"case{self._num_cases:04d}"
        shutil.copytree(case.folder, folder)
        return Case(folder, case.recipe, case.recipe_name)

    def forget(self, case: Case) -> None:
        """Delete the folder of a case, for which no problem was found."""
        shutil.rmtree(case.folder, ignore_errors=True)
        shutil.rmtree(case.folder.with_name(f"{case.folder.name}.out"), ignore_errors=True)

    def start(self, command: Command, *preparations: Preparation) -> Process:
        """Start a command in a forked process."""
        return fork(command, [*self.faults, *preparations])

    def start_ranks(self, command: Command, count: int, *preparations: Preparation) -> list[Process]:
        return fork_ranks(command, count, [*self.faults, *preparations])

    def reference(self, recipe: str, *overrides: str, ranks: int = 1) -> Reference:
        """Return the run of a recipe that nothing disturbs, which is done once.

        Raises:
            RuntimeError: it fails.
        """
        key = (recipe, *overrides, f"{ranks} ranks")
        if key not in self._references:
            case = self.case(recipe, *overrides)
            start = time.monotonic()
            if ranks == 1:
                processes = [fork(case.command())]
            else:
                processes = fork_ranks(case.command(), ranks)
            for process in processes:
                if process.wait():
                    raise RuntimeError(f"the reference run of {recipe} fails: {process.text()}")
            seconds = time.monotonic() - start
            self._references[key] = Reference(case.run, read_outcome(case.run), seconds)
        return self._references[key]

    def end_problems(self, case: Case, process: Process, reference: Reference, step: int) -> list[str]:
        """Return what is wrong with a run that the same command has brought to its end.

        Args:
            process: the last one, which is expected to have ended by itself.
            step: of the newest whole checkpoint before it was started.
        """
        text = process.text()
        if process.exit_code != 0:
            return [f"the same command fails with {process.exit_code}: {process.last_line()}"]
        max_checkpoints = KEPT_CHECKPOINTS
        if (case.run / "checkpoints" / "best.json").is_file():
            max_checkpoints += 1
        problems = differences(case.run, reference.outcome, max_checkpoints=max_checkpoints)
        resumed = RESUMED.search(text)
        if step and COMPLETE not in text and (resumed is None or int(resumed.group(1)) < step):
            problems.append(f"step {step} was saved, and the run does not go on from there")
        problems += leftovers(case)
        return problems


def leftovers(case: Case) -> list[str]:
    """Return what commands have left outside of the run's folder, temporary files and processes."""
    problems = []
    expected = {case.folder / "tmp", case.folder / case.recipe, case.run, *case.run.parents}
    for path in [*case.folder.iterdir(), *case.run.parent.iterdir()]:
        if path not in expected:
            problems.append(f"left over: {path.relative_to(case.folder)}")
    for path in (case.folder / "tmp").iterdir():
        if not path.name.startswith(TORCHRUN_FILES):
            problems.append(f"left over: tmp/{path.name}")
    pids = marked_processes(case.folder)
    if pids:
        problems.append(f"processes run on: {pids}")
    return problems


def wait_until(condition: Callable[[], bool], seconds: float, poll_seconds: float = 0.01) -> bool:
    """Wait until a condition holds; return False if it does not for so long."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(poll_seconds)
    return True


def is_saved(case: Case, step: int) -> bool:
    """Whether the run of a case has saved this step or a later one. Reads names alone: it may change at any moment."""
    return any(int(path.name[5:13]) >= step for path in (case.run / "checkpoints").glob("step_*"))


def stop_after(bench: Bench, case: Case, step: int, number: int, *arguments: str) -> Process:
    """Start a case, and send a signal as soon as it has saved a step. Returns the process, which has ended."""
    process = bench.start(case.command(*arguments))
    wait_until(lambda: is_saved(case, step) or process.has_ended(), 120.0, poll_seconds=0.002)
    process.send(number)
    process.wait()
    return process
