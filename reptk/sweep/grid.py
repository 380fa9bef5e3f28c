"""The runs of a sweep: every combination of the values of its keys, each loaded and validated before the first one trains."""

import json
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from reptk import config
from reptk.config import Recipe, RecipeError
from reptk.config.dotted_keys import is_among
from reptk.config.schema import SAME_RESULT_KEYS
from reptk.config.value_lists import split_values
from reptk.core import rng
from reptk.core.counts import format_count
from reptk.core.errors import UsageError
from reptk.core.files import expand_home, real_path
from reptk.models.backbone import full_name, is_external, pretrained_cfg

MAX_RUNS = 10_000
"""Runs of a sweep."""

MAX_PROBLEMS = 20
"""Lines of a message about runs that do not validate."""

RECIPE_KEY = "recipe"
"""What the recipe is called among the keys of a sweep. No key of a recipe has this name."""

SEED_KEY = "seed"

SINGLE_KEYS = (*SAME_RESULT_KEYS, "name")
"""Keys, or tables of keys, of which a sweep has one value: runs that differ in them would have the same results."""

TRACKER_KEYS = ("train.trackers", "trackers")
"""Those of them whose values may be lists of names."""

Setting = tuple[tuple[str, str], ...]
"""The values of the keys that differ in a sweep, without the seed, in the order of the command."""


class Dimension(NamedTuple):
    """A key of a sweep, and its values as they were typed."""

    key: str
    values: list[str]


class Grid(NamedTuple):
    """What a command of `reptk sweep` describes.

    recipes: names or paths.
    fixed: overrides of all runs.
    dimensions: keys with several values, without the recipe and the seed.
    seeds: values of the seed; empty if it is that of the recipes.
    """

    recipes: list[str]
    fixed: list[str]
    dimensions: list[Dimension]
    seeds: list[str]

    @property
    def num_settings(self) -> int:
        """Combinations of recipes and values, without the seeds."""
        return len(self.recipes) * math.prod(len(dimension.values) for dimension in self.dimensions)

    @property
    def swept_keys(self) -> list[str]:
        """The keys with several values, the recipe among them."""
        keys = [dimension.key for dimension in self.dimensions]
        if len(self.recipes) > 1:
            keys.insert(0, RECIPE_KEY)
        if len(self.seeds) > 1:
            keys.append(SEED_KEY)
        return keys


class GridCell(NamedTuple):
    """One run of a sweep.

    source: the recipe as the command names it.
    overrides: of the run, as `python -m reptk.recipe` takes them.
    recipe: the result.
    setting: what distinguishes it from the others, without the seed.
    """

    source: str
    overrides: list[str]
    recipe: Recipe
    setting: Setting

    @property
    def label(self) -> str:
        """What the run is called in lines and folders, e.g. `loss.temperature=0.1 seed=0`."""
        return run_label(setting_label(self.setting), self.recipe.seed)


def setting_label(setting: Setting) -> str:
    """Return a setting as text, e.g. `supcon_digits optim.lr=0.1`; empty if nothing but the seed differs."""
    words = []
    for key, value in setting:
        if key == RECIPE_KEY:
            words.append(value)
        else:
            words.append(f"{key}={value}")
    return " ".join(words)


def run_label(setting: str, seed: int | str) -> str:
    """Return what the run of a setting is called, from the label of that, which may be empty."""
    return f"{setting} seed={seed}".strip()


def parse_grid(recipes: str, pairs: Sequence[str]) -> Grid:
    """Read the arguments of a sweep.

    Args:
        recipes: a recipe, or several with commas between them.
        pairs: `key=value` or `key=value,value`; see `reptk.config.value_lists`.

    Raises:
        UsageError: a pair without a key, a key that is named twice, or values that cannot be read.
    """
    if Path(recipes).exists():
        sources = [recipes]  # the name of a file may hold a comma
    else:
        sources = split_values("RECIPE", recipes)
    _check_distinct(RECIPE_KEY, sources)
    fixed = []
    dimensions = []
    seeds: list[str] = []
    keys = set()
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not all(key.split(".")):
            raise UsageError(f"{pair!r} is not key=value (e.g. loss.temperature=0.05,0.1, seed=0..2)")
        if key in keys:
            raise UsageError(f"{key} is named twice; write its values with commas between them, e.g. seed=0,1")
        keys.add(key)
        values = split_values(key, text)
        _check_distinct(key, values)
        if key == SEED_KEY:
            seeds = values
        elif len(values) > 1:
            dimensions.append(Dimension(key, values))
        else:
            fixed.append(f"{key}={values[0]}")
    return Grid(sources, fixed, dimensions, seeds)


def load_cells(
    grid: Grid, *, draws: int | None = None, draw_seed: int = 0, plugins: Sequence[str] = (), trust: bool = False
) -> list[GridCell]:
    """Return the runs of a grid, setting by setting, each with all seeds.

    Args:
        grid: see `parse_grid`.
        draws: that many settings, drawn at random, in place of all.
        draw_seed: of the draw.
        plugins, trust: as for `reptk.config.load`.

    Raises:
        UsageError: a key with several values changes no result, a recipe does not exist, runs do not validate (with all
            problems at once), two runs are the same, their data sets differ, or there are too many.
    """
    _check_dimensions(grid)
    num_seeds = max(1, len(grid.seeds))
    if draws is None:
        numbers: Sequence[int] = range(grid.num_settings)
    else:
        numbers = draw_settings(grid.num_settings, draws, draw_seed)
    if len(numbers) * num_seeds > MAX_RUNS:
        raise UsageError(
            f"these are {len(numbers) * num_seeds:,} runs, more than {MAX_RUNS:,}; name fewer values, or draw some: --random 50"
        )
    cells = []
    problems: dict[tuple[str, str], list[str]] = {}
    for number in numbers:
        source, values = _setting(grid, number)
        for seed in grid.seeds or [None]:
            overrides = [*grid.fixed, *values]
            if seed is not None:
                overrides.append(f"{SEED_KEY}={seed}")
            try:
                recipe = config.load(source, overrides, plugins=plugins, trust=trust)
            except RecipeError as error:
                label = " ".join([Path(source).stem, *overrides])
                for problem in error.problems:
                    problems.setdefault(problem, []).append(label)
                continue
            cells.append(GridCell(source, overrides, recipe, _differing(grid, source, values)))
    if problems:
        raise UsageError(_describe_problems(problems, len(numbers) * num_seeds))
    _check_different_recipes(cells)
    _check_same_dataset(cells)
    _check_backbones(cells)
    return cells


def draw_settings(num_settings: int, draws: int, seed: int) -> list[int]:
    """Return the numbers of different settings, drawn at random; the first ones of a longer draw are those of a shorter one.

    Args:
        num_settings: to draw from.
        draws: how many; all of them, in random order, if there are no more.
        seed: of the draw.
    """
    numbers: dict[int, None] = {}
    attempt = 0
    while len(numbers) < min(draws, num_settings):
        # Not a permutation of all: a grid may have more settings than fit into memory.
        numbers[rng.key("sweep", seed, attempt) % num_settings] = None
        attempt += 1
    return list(numbers)


def loading_notes(cells: Sequence[GridCell]) -> list[str]:
    """Return what overrides change besides what they say (`override_notes`), once for all runs that they hold for."""
    settings: dict[str, list[str]] = {}
    num_settings = len({(cell.source, cell.setting) for cell in cells})
    seen = set()
    for cell in cells:
        if (cell.source, cell.setting) in seen:
            continue  # the same with another seed
        seen.add((cell.source, cell.setting))
        for note in config.override_notes(cell.source, cell.overrides, cell.recipe):
            settings.setdefault(note, []).append(setting_label(cell.setting))
    lines = []
    for note, labels in settings.items():
        if len(labels) == num_settings:
            lines.append(note)
        elif len(labels) > 1:
            lines.append(f"{labels[0]} and {format_count(len(labels) - 1, 'other setting')}: {note}")
        elif note.startswith(f"{labels[0]}: "):
            lines.append(note)
        else:
            lines.append(f"{labels[0]}: {note}")
    return lines


def _setting(grid: Grid, number: int) -> tuple[str, list[str]]:
    """Return the recipe and the overrides of a setting by its number; the last key changes first."""
    values = []
    for dimension in reversed(grid.dimensions):
        number, position = divmod(number, len(dimension.values))
        values.append(f"{dimension.key}={dimension.values[position]}")
    return grid.recipes[number], values[::-1]


def _differing(grid: Grid, source: str, values: Sequence[str]) -> Setting:
    setting = []
    if len(grid.recipes) > 1:
        stems = [Path(recipe).stem for recipe in grid.recipes]
        name = Path(source).stem
        if stems.count(name) > 1:
            name = source
        setting.append((RECIPE_KEY, name))
    for pair in values:
        key, _, value = pair.partition("=")
        setting.append((key, value))
    return tuple(setting)


def _check_distinct(key: str, values: Sequence[str]) -> None:
    for position, value in enumerate(values):
        if value in values[:position]:
            raise UsageError(f"{key} names {value!r} twice")


def _check_dimensions(grid: Grid) -> None:
    """Raise UsageError for a key with several values that does not change the result of a run."""
    for dimension in grid.dimensions:
        if not is_among(dimension.key, SINGLE_KEYS):
            continue
        command = shlex.quote(f"{dimension.key}={dimension.values[0]}")
        message = f"{dimension.key} does not change the result of a run; set it once for all runs, e.g. {command}"
        if is_among(dimension.key, TRACKER_KEYS):
            value_list = json.dumps(dimension.values)
            message += f", or as a list, which is one value: {shlex.quote(f'{dimension.key}={value_list}')}"
        raise UsageError(message)


def _describe_problems(problems: dict[tuple[str, str], list[str]], num_runs: int) -> str:
    width = max(len(key) for key, _ in problems)
    lines = [f"the sweep does not validate, and none of its {format_count(num_runs, 'run')} was started"]
    for (key, message), labels in list(problems.items())[:MAX_PROBLEMS]:
        of_runs = ""
        if len(labels) < num_runs:
            of_runs = f" (in {format_count(len(labels), 'run')}, first {labels[0]})"
        lines.append(f"  {key:<{width}}  {message}{of_runs}")
    if len(problems) > MAX_PROBLEMS:
        lines.append(f"  and {format_count(len(problems) - MAX_PROBLEMS, 'more problem')}")
    return "\n".join(lines)


def _check_different_recipes(cells: Sequence[GridCell]) -> None:
    """Raise if two runs would be the same, e.g. by the values 0.1 and 0.10."""
    first_labels: dict[str, str] = {}
    for cell in cells:
        data = {**cell.recipe.data, "root": _real_root(cell.recipe)}
        content = cell.recipe.model_copy(update={"overrides": (), "expect": None, "data": data}).dump()
        if content in first_labels:
            raise UsageError(f"{first_labels[content]} and {cell.label} are the same run; name each value once")
        first_labels[content] = cell.label


def _check_same_dataset(cells: Sequence[GridCell]) -> None:
    """Raise if runs are of other data sets, whose numbers have nothing to do with each other."""
    first = cells[0]
    for cell in cells:
        if cell.recipe.data["name"] != first.recipe.data["name"]:
            raise UsageError(_different_data(cell, first, "name"))
        if _real_root(cell.recipe) != _real_root(first.recipe):
            raise UsageError(_different_data(cell, first, "root"))


def _different_data(cell: GridCell, first: GridCell, key: str) -> str:
    return (
        f"{first.label} has data.{key} {first.recipe.data.get(key)!r}, and {cell.label} {cell.recipe.data.get(key)!r}: numbers "
        "of different data cannot be compared. Start a sweep for each"
    )


def _real_root(recipe: Recipe) -> str | None:
    """Return the absolute path of a recipe's data, without links; None of data that is in no folder."""
    root = recipe.data.get("root")
    if not isinstance(root, str):
        return None
    return str(real_path(expand_home(root)))


def _check_backbones(cells: Sequence[GridCell]) -> None:
    """Raise UsageError for a backbone that timm does not have; one of the hub or of a folder is read when its run starts."""
    for backbone in dict.fromkeys(cell.recipe.encoder.backbone for cell in cells):
        name = full_name(backbone)
        if not is_external(name):
            pretrained_cfg(name)
