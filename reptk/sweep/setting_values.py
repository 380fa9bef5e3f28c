"""What of a run's recipe is its setting: everything but seeds, its own and those of the runs that it starts from."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from reptk import config
from reptk.config.dotted_keys import flatten, is_among
from reptk.config.schema import SAME_RESULT_KEYS
from reptk.config.stage import RUN_KEY
from reptk.core.errors import ReptkError
from reptk.core.files import expand_home
from reptk.report.recipe_diff import FlatRecipe
from reptk.sweep.grid import SEED_KEY

IGNORED_KEYS = (*SAME_RESULT_KEYS, SEED_KEY, "name")
"""Keys, or tables of keys, that are no part of a setting."""

WEIGHTS_KEY = "encoder.weights"

BASELINES_KEY = "train.baselines"

START_KEYS = (RUN_KEY, WEIGHTS_KEY)
"""Keys whose value may be the folder of a run, or lie in it."""

MAX_FOLDERS_ABOVE = 2
"""`RUN/model/model.safetensors` is two folders below that of its run."""

MAX_STAGES = 8
"""Runs that start from each other; of more, or of a circle, the paths are compared."""


class StartRun(NamedTuple):
    """A run that another one starts from.

    seed: of its recipe.
    content: what it trained, as text that is the same for runs that differ in their seeds alone.
    """

    seed: Any
    content: str


def setting_values(values: FlatRecipe) -> FlatRecipe:
    """Return the values of a recipe without those that are no part of its setting."""
    setting = {key: value for key, value in values.items() if not is_among(key, IGNORED_KEYS)}
    starts_from_weights = values.get("encoder.pretrained") or values.get(WEIGHTS_KEY) or values.get(RUN_KEY)
    if not starts_from_weights:
        # Only runs from trained weights may end in the weights that they began with, if those were evaluated.
        setting.pop(BASELINES_KEY, None)
    return setting


def with_common_starts(recipes: Sequence[FlatRecipe]) -> list[FlatRecipe]:
    """Return recipes in which runs to start from that differ in their seeds alone are called by the name of the first.

    Stages over seeds, `linear seed=1 --from runs/supcon_digits/1` and the same with 2, are so of one setting. The runs that
    stages start from are named without the folders that are common to all of them.
    """
    first_names: dict[tuple[str, str], Any] = {}
    renamed = []
    for recipe in recipes:
        values = dict(recipe)
        for key in START_KEYS:
            start = read_start(values.get(key))
            if start is not None:
                values[key] = first_names.setdefault((key, start.content), values[key])
        if RUN_KEY in values:
            # The run's: they differ where the runs do.
            values.pop(WEIGHTS_KEY, None)
        renamed.append(values)
    return _without_common_folders(renamed)


def _without_common_folders(recipes: Sequence[FlatRecipe]) -> list[FlatRecipe]:
    """Return recipes in which the runs that stages start from are relative to the last folder that holds all of them."""
    runs = {recipe[RUN_KEY] for recipe in recipes if isinstance(recipe.get(RUN_KEY), str)}
    if len(runs) < 2:
        return list(recipes)
    try:
        common = os.path.commonpath(runs)
    except ValueError:  # absolute and relative paths, or several drives
        return list(recipes)
    shortened = []
    for recipe in recipes:
        if recipe.get(RUN_KEY) in runs:
            recipe = {**recipe, RUN_KEY: os.path.relpath(recipe[RUN_KEY], common)}
        shortened.append(recipe)
    return shortened


def seed_of_start(values: FlatRecipe) -> int | None:
    """Return the seed of the run that a recipe starts from; None if it starts from none, or that is gone."""
    for key in START_KEYS:
        start = read_start(values.get(key))
        if start is not None and isinstance(start.seed, int):
            return start.seed
    return None


def read_start(value: Any, depth: int = 0) -> StartRun | None:
    """Return the run in whose folder a path lies; None if there is none.

    Args:
        value: of one of `START_KEYS`; it and the files that it leads to are untrusted.
        depth: how many stages it starts later runs through.
    """
    if not isinstance(value, str) or depth > MAX_STAGES:
        return None
    try:
        path = expand_home(value)
        for folder in [path, *path.parents][: MAX_FOLDERS_ABOVE + 1]:
            if (folder / "recipe.toml").is_file():
                return _read_run(folder, str(path.relative_to(folder)), depth)
    except (ReptkError, OSError, ValueError):
        return None
    return None


def _read_run(folder: Path, place: str, depth: int) -> StartRun:
    table = config.read(folder / "recipe.toml")
    try:
        values = flatten(config.validate(table).model_dump(mode="json"))
    except ReptkError:  # e.g. a plugin that is not installed here
        values = flatten(table)
    setting = setting_values(values)
    for key in START_KEYS:
        start = read_start(setting.get(key), depth + 1)
        if start is not None:
            setting[key] = start.content
    return StartRun(values.get(SEED_KEY, 0), repr([place, sorted(setting.items())]))
