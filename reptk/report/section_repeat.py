"""The commands that repeat a run, and the paper to cite."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from reptk.report.recipe_diff import shipped_recipe, training_command
from reptk.report.run_files import Run

PAPERS = {
    "tcl": "Animesh and Chandraker, Tuned Contrastive Learning, arXiv:2305.10675",
    "supcon": "Khosla et al., Supervised Contrastive Learning, arXiv:2004.11362",
    "simclr": "Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, arXiv:2002.05709",
}


@dataclass(frozen=True)
class RunCommands:
    """The commands that repeat a run; `name` is empty for a single run."""

    name: str
    commands: list[str]
    citation: str


@dataclass(frozen=True)
class RepeatSection:
    """What templates/repeat.html.j2 shows."""

    runs: list[RunCommands]


def repeat_section(runs: Sequence[Run]) -> RepeatSection:
    """Return the commands of all runs."""
    is_single = len(runs) == 1
    return RepeatSection([_run_commands(run, is_single=is_single) for run in runs])


def _run_commands(run: Run, *, is_single: bool) -> RunCommands:
    # Quoted: the commands are copied into a shell, and names of folders may hold spaces.
    folder = shlex.quote(str(run.folder))
    commands = [f"reptk evaluate {folder}", f"reptk report {folder}"]
    if run.recipe:
        # An evaluation of a foreign encoder has no recipe to repeat.
        commands.insert(0, training_command(run, shipped_recipe(run)))
    return RunCommands("" if is_single else run.name, commands, _citation(run))


def _citation(run: Run) -> str:
    measured = "Measured with reptk"
    versions = run.results.protocol.get("versions")
    if isinstance(versions, dict) and "reptk" in versions:
        measured += f" {versions['reptk']}"
    commit = run.results.protocol.get("commit")
    if commit:
        measured += f", commit {commit}"
    loss = run.recipe.get("loss")
    if isinstance(loss, dict) and loss.get("name") in PAPERS:
        return f"{measured}. Loss: {PAPERS[loss['name']]}."
    return f"{measured}."
