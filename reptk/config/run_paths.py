"""What a path is that is not the folder of a run, and which run was probably meant: the one around it, or one below it."""

import itertools
import os
import shlex
from pathlib import Path
from typing import NamedTuple

from reptk.core.counts import format_count
from reptk.core.files import expand_home, real_path

RECIPE_FILE = "recipe.toml"
"""Every run's folder has one."""

MODEL_WEIGHTS = "model.safetensors"
"""Weights of the backbone in the folder of a model, under timm's names."""

EARLIER_MODEL_WEIGHTS = "encoder.safetensors"
"""Weights of backbone and head in one file, in the folders of models that earlier versions wrote."""

WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar", ".npz")

MAX_FOLDERS_ABOVE = 3
"""`RUN/checkpoints/step_00000100/state.pt` is three folders below that of its run."""

RUN_PLACES = ("runs/*", "*", "*/*", "sweeps/*/runs/*")
"""Where runs are in a folder: in that of a sweep, in `runs/RECIPE`, in `runs`."""

MAX_FOLDERS_LISTED = 10_000
"""So many folders are looked at; a home folder may have more."""


MAX_DIGITS = 9
"""Of a run's number; int() raises on thousands of digits."""


class NoRun(NamedTuple):
    """What a path is that is no folder of a run.

    what: a clause, e.g. `this is the model folder of a run`.
    run: folder of a run that was probably meant; None if there is none.
    choice: how `run` relates to the path, for `hint`.
    is_weights: whether it holds weights without a run.
    """

    what: str
    run: Path | None = None
    choice: str = "Name the run"
    is_weights: bool = False

    def hint(self, option: str = "") -> str:
        """Return a sentence that names the run that was probably meant, after a full stop; empty if there is none.

        Args:
            option: what the user writes before the path, e.g. `--from `.
        """
        if self.run is None:
            return ""
        return f". {self.choice}: {option}{shlex.quote(str(self.run))}"


def has_model_weights(folder: Path) -> bool:
    """Return whether a folder holds the weights of a model, by this version or an earlier one."""
    return any((folder / name).is_file() for name in (MODEL_WEIGHTS, EARLIER_MODEL_WEIGHTS))


def describe_no_run(named: str) -> NoRun:
    """Return what a path is that is no folder of a run.

    Args:
        named: the path, as the user named it.
    """
    path = expand_home(named)
    if not path.exists():
        # The name of a recipe, perhaps, whose runs are numbered.
        runs = _runs_below(Path("runs") / path)
        newest = runs[-1] if runs else None
        return NoRun(f"there is no folder {named}", newest, "Its newest run")
    run = _run_around(path)
    if run is not None:
        return NoRun(f"this is {_part_of_run(path)} of a run, and not its folder", run)
    if path.is_file():
        if path.suffix in WEIGHT_SUFFIXES:
            return NoRun("this is a file of weights outside of the folder of a run", is_weights=True)
        return NoRun("this is a file, and a run is a folder")
    if has_model_weights(path):
        return NoRun(
            f"this is a model folder without the run that it is from, which has a {RECIPE_FILE}", is_weights=True
        )
    runs = _runs_below(path)
    if not runs:
        return NoRun(f"this is not the folder of a run, which has a {RECIPE_FILE}")
    count = format_count(len(runs), "run")
    if (path / "logs").is_dir():
        return NoRun(f"this is the folder of a sweep of {count}", runs[0], "Name one of them, for example")
    return NoRun(f"this is a folder that holds {count}", runs[-1], "Name one of them, for example")


def _part_of_run(path: Path) -> str:
    """Return what a file or folder in the folder of a run is."""
    if path.name == RECIPE_FILE:
        return "the recipe"
    if path.is_dir() and real_path(path).name == "model":
        return "the model folder"
    kind = "folder" if path.is_dir() else "file"
    if "checkpoints" in real_path(path).parts[-MAX_FOLDERS_ABOVE:]:
        return f"a {kind} of checkpoints"
    return f"a {kind}"


def _run_around(path: Path) -> Path | None:
    """Return the folder of the run that a path lies in, as a part of the path if it is one."""
    # Resolved as well, because the parent of "." is ".".
    for start in (path, real_path(path)):
        for folder in list(start.parents)[:MAX_FOLDERS_ABOVE]:
            if (folder / RECIPE_FILE).is_file():
                return folder
    return None


def _runs_below(folder: Path) -> list[Path]:
    """Return the folders of runs below a folder, numbered ones in the order of their numbers."""
    for place in RUN_PLACES:
        runs = []
        for path in itertools.islice(folder.glob(place), MAX_FOLDERS_LISTED):
            if (path / RECIPE_FILE).is_file():
                runs.append(path)
        if runs:
            return sorted(runs, key=_natural_order)
    return []


def _natural_order(path: Path) -> tuple[str, int, str]:
    """Return a key by which run 10 comes after run 9."""
    number = -1
    if path.name.isascii() and path.name.isdecimal():
        number = int(path.name[:MAX_DIGITS])
    return os.fspath(path.parent), number, path.name
