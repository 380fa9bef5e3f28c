"""The folder of a sweep: which run's folder belongs to which of its runs, also when the command names other values than before.

    OUT/runs/LABEL/       the folder of a run, as `python -m reptk.recipe --out` writes it
    OUT/logs/LABEL.log    what the run has printed
    OUT/planned.json      which runs were to be trained, see `reptk.sweep.planned_runs`
    OUT/sweep.*, runs.csv, report.html   tables and a comparison, see `reptk.sweep.write_tables`

A run is recognized by the recipe in its folder.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from reptk import config
from reptk.config import Recipe
from reptk.config.dotted_keys import flatten, is_among
from reptk.config.schema import EXECUTION_KEYS, SAME_RESULT_KEYS
from reptk.core.counts import format_count
from reptk.core.errors import ReptkError, UsageError
from reptk.report.recipe_diff import FlatRecipe, format_value
from reptk.sweep.grid import RECIPE_KEY, Grid, GridCell

RUNS = "runs"
LOGS = "logs"

MAX_NAME_LENGTH = 100
"""Characters of a folder's name; longer ones end in a hash."""

MAX_DIFFERENCES = 5
"""Keys that a message lists."""


class Assignment(NamedTuple):
    """The folder of each run, in the order of the cells.

    folders: below `OUT/runs`; those of runs that were started before exist.
    num_earlier: how many of them were started before.
    others: folders of earlier runs that are none of these.
    """

    folders: list[Path]
    num_earlier: int
    others: list[Path]


def default_folder(grid: Grid) -> Path:
    """Return where a sweep is written if the command does not say it; the same for the same keys and other values of them."""
    words = [Path(recipe).stem for recipe in grid.recipes]
    for pair in grid.fixed:
        if not is_among(pair.partition("=")[0], EXECUTION_KEYS):
            words.append(pair)
    words += [key for key in grid.swept_keys if key != RECIPE_KEY]
    return Path("runs") / "sweeps" / folder_name(" ".join(words))


def folder_name(label: str) -> str:
    """Return a label as the name of a folder that any file system takes, and a shell needs no quotes for."""
    name = re.sub(r"[^\w.+=-]+", ",", label, flags=re.ASCII).strip(",.") or "run"
    # Different labels must not have the same name.
    is_exact = label.replace(" ", ",") == name
    if is_exact and len(name) <= MAX_NAME_LENGTH:
        return name
    digest = hashlib.sha256(label.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return f"{name[: MAX_NAME_LENGTH - 9]}-{digest}"


def assign_folders(cells: Sequence[GridCell], swept_keys: Sequence[str], out: Path) -> Assignment:
    """Return the folder of each run of a sweep: that of an earlier run with the same recipe, else a new one.

    Args:
        cells: the runs.
        swept_keys: keys with several values in this command.
        out: the folder of the sweep, which need not exist.

    Raises:
        UsageError: the folder holds runs that this command could not have started, and none of its own.
    """
    earlier = _earlier_runs(out / RUNS)
    by_content: dict[str, Path] = {}
    for folder, values in earlier.items():
        by_content.setdefault(repr(sorted(values.items())), folder)
    folders: list[Path | None] = []
    recipes = [run_identity(cell.recipe) for cell in cells]
    for values in recipes:
        folders.append(by_content.get(repr(sorted(values.items()))))
    taken = {path.name for path in earlier}
    complete = []
    for cell, folder in zip(cells, folders, strict=True):
        if folder is None:
            folder = out / RUNS / _unused_name(folder_name(cell.label), taken)
            taken.add(folder.name)
        complete.append(folder)
    others = [path for path in earlier if path not in complete]
    is_extension = any(_differs_only_in(earlier[path], recipes[0], swept_keys) for path in others)
    if others and len(others) == len(earlier) and not is_extension:
        raise UsageError(_foreign_runs(out, others[0], earlier[others[0]], recipes[0]))
    return Assignment(complete, len(earlier) - len(others), others)


def _earlier_runs(runs: Path) -> dict[Path, FlatRecipe]:
    """Return the recipes of the runs in a sweep's folder; those that do not validate match no run of the sweep."""
    earlier = {}
    if runs.is_dir():
        for path in sorted(runs.iterdir()):
            if (path / "recipe.toml").is_file():
                try:
                    earlier[path] = run_identity(config.validate(config.read(path / "recipe.toml")))
                except ReptkError:
                    earlier[path] = {}
    return earlier


def run_identity(recipe: Recipe) -> FlatRecipe:
    """Return the values of a recipe that make it the same run."""
    values = flatten(recipe.model_dump(mode="json"))
    return {key: value for key, value in values.items() if not is_among(key, SAME_RESULT_KEYS)}


def _unused_name(name: str, taken: set[str]) -> str:
    candidate = name
    number = 2
    while candidate in taken:
        candidate = f"{name}-{number}"
        number += 1
    return candidate


def _differing_keys(before: FlatRecipe, now: FlatRecipe) -> list[str]:
    return [key for key in {**before, **now} if before.get(key) != now.get(key)]


def _differs_only_in(before: FlatRecipe, now: FlatRecipe, swept_keys: Sequence[str]) -> bool:
    """Return whether a run may be one of the same sweep with other values of its keys."""
    if RECIPE_KEY in swept_keys:
        return True
    names = []
    for key in swept_keys:
        # With another part its arguments differ as well.
        names.append(key.removesuffix(".name"))
    if "train.epochs" in swept_keys:
        names.append("optim.warmup_epochs")
    return all(is_among(key, names) for key in _differing_keys(before, now))


def _foreign_runs(out: Path, folder: Path, before: FlatRecipe, now: FlatRecipe) -> str:
    keys = _differing_keys(before, now)
    lines = [
        f"{out} holds the runs of another sweep. Choose another --out, or name all values of a key in one command. "
        f"{folder.name} differs in {format_count(len(keys), 'key')}:"
    ]
    for key in keys[:MAX_DIFFERENCES]:
        lines.append(f"  {key:<24} {format_value(before.get(key))} in the run, {format_value(now.get(key))} now")
    return "\n".join(lines)
