"""The recipe of a run with every default, its difference from the shipped recipe, and the command that repeats it."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from reptk import config
from reptk.config.dotted_keys import flatten
from reptk.core.errors import ReptkError
from reptk.core.foreign_files import MAX_TOML_BYTES, read_text
from reptk.report.run_files import Run

IGNORED_TABLES = ("name", "expect", "plugins", "overrides")
"""Tables and keys that do not change a training, or are reported elsewhere."""

FlatRecipe = dict[str, Any]
"""The values of a recipe by dotted keys, such as `train.epochs`."""


@dataclass(frozen=True)
class ShippedRecipe:
    """A recipe that comes with reptk or with an installed package.

    Args:
        head: the comment at the top of its file.
        values: its values with every default.
    """

    name: str
    head: str
    values: FlatRecipe


def recipe_values(run: Run) -> FlatRecipe:
    """Return the values of the run's recipe, with every default if all of its parts are registered."""
    try:
        recipe = config.validate(run.recipe)
    except ReptkError:  # e.g. a plugin that is not installed here
        return flatten(run.recipe)
    return flatten(recipe.model_dump(mode="json"))


def shipped_recipe(run: Run) -> ShippedRecipe | None:
    """Return the shipped or installed recipe of the same name; None if there is none."""
    path = config.available().get(str(run.recipe.get("name", "")))
    if path is None:
        return None
    try:
        recipe = config.validate({"name": path.stem, **config.read(path)})
    except ReptkError:
        return None
    return ShippedRecipe(path.stem, _head_comment(path), flatten(recipe.model_dump(mode="json")))


def differing_keys(recipes: Sequence[FlatRecipe]) -> list[str]:
    """Return the keys whose value is not the same in all recipes, in the order of a recipe."""
    keys: dict[str, None] = {}
    for recipe in recipes:
        keys |= dict.fromkeys(recipe)
    differing = []
    for key in keys:
        table = key.partition(".")[0]
        # A key that only some recipes have differs as well.
        values_differ = any(recipe.get(key) != recipes[0].get(key) for recipe in recipes)
        if table not in IGNORED_TABLES and values_differ:
            differing.append(key)
    return differing


def described_values(
    values: FlatRecipe, keys: Sequence[str], recipes: Sequence[FlatRecipe], *, all_arguments: bool = False
) -> list[tuple[str, str]]:
    """Return what distinguishes a recipe from others: keys with its values as text.

    A key that it leaves unset is "unset", if a recipe with the same part sets it; a table of which it has nothing, such as
    `train.sampler`, is unset as a whole.

    Args:
        values: of the recipe.
        keys: those that differ, in the order of the result.
        recipes: all that are compared, this one among them.
        all_arguments: list also the arguments of a part that differs which all recipes with the same part share.
    """
    described: dict[str, str] = {}
    for key in keys:
        part_key = f"{key.rpartition('.')[0]}.name"
        is_argument = key != part_key and part_key in keys
        if key in values:
            same_part = [recipe for recipe in recipes if recipe.get(part_key) == values.get(part_key)]
            is_shared = all(recipe.get(key) == values[key] for recipe in same_part)
            if all_arguments or not (is_argument and is_shared):
                described[key] = format_value(values[key])
            continue
        missing = _missing_table(key, values)
        if missing != key:
            described[missing] = format_value(None)
        elif any(key in recipe and recipe.get(part_key) == values.get(part_key) for recipe in recipes):
            described[key] = format_value(None)
    return list(described.items())


def _missing_table(key: str, values: FlatRecipe) -> str:
    """Return the outermost table around a key of which a recipe has no value; the key itself if it has some of all."""
    names = key.split(".")
    for length in range(1, len(names)):
        table = ".".join(names[:length])
        if not any(other.startswith(f"{table}.") or other == table for other in values):
            return table
    return key


def training_command(run: Run, shipped: ShippedRecipe | None) -> str:
    """Return the command that trains the same again.

    It names the shipped recipe and overrides, if that gives exactly this recipe; else the recipe.toml of the run.
    """
    # A plugin is a file of its author's; only the run's recipe.toml names it.
    if shipped is not None and not run.recipe.get("plugins"):
        values = recipe_values(run)
        overrides = []
        for key in differing_keys([shipped.values, values]):
            if key in values:
                overrides.append(f"{key}={_toml_value(values[key])}")
        # Checked by loading: a value that TOML cannot say in a line would give another recipe.
        if _reproduces(shipped.name, overrides, values):
            return shlex.join(["python", "-m", "reptk.recipe", shipped.name, *overrides])
    return shlex.join(["python", "-m", "reptk.recipe", str(run.folder / "recipe.toml")])


def format_value(value: Any) -> str:
    """Return a value of a recipe or of a protocol as text."""
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict):
        parts = [f"{key} {_format_nested(item)}" for key, item in value.items()]
        return ", ".join(parts)
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_format_nested, value))
    return str(value)


def _format_nested(value: Any) -> str:
    if isinstance(value, (dict, list, tuple)):
        return f"({format_value(value)})"
    return format_value(value)


def _reproduces(name: str, overrides: Sequence[str], values: FlatRecipe) -> bool:
    """Return whether the recipe `name` with these overrides has these values, and fits into one line."""
    try:
        recipe = config.load(name, overrides)
    except ReptkError:
        return False
    reproduced = flatten(recipe.model_dump(mode="json"))
    has_line_break = any("\n" in override for override in overrides)
    return not has_line_break and not differing_keys([reproduced, values])


def _toml_value(value: Any) -> str:
    # The shell command overrides a key by a TOML value, e.g. optim.lr=0.1 or views.name="simclr".
    text = tomli_w.dumps({"value": value}).strip().removeprefix("value = ")
    if isinstance(value, list):
        return " ".join(text.split())  # tomli_w writes an item a line
    return text


def _head_comment(path: Path) -> str:
    """Return the comment lines at the top of a recipe file."""
    lines = []
    for line in read_text(path, MAX_TOML_BYTES).splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").removeprefix(" "))
    return "\n".join(lines)
