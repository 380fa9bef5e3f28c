"""The recipe: how it differs from the shipped one, or the recipes of several runs from each other; and all of its values."""

from collections.abc import Sequence
from dataclasses import dataclass

from reptk.core.counts import format_count
from reptk.report.recipe_diff import differing_keys, format_value, recipe_values, shipped_recipe
from reptk.report.run_files import Run


@dataclass(frozen=True)
class ChangedValue:
    """A key, and its value in each recipe."""

    key: str
    values: list[str]


@dataclass(frozen=True)
class ShippedComparison:
    """The shipped recipe of the same name, its head comment, and what the run has changed; `count` is "3 values"."""

    name: str
    head: str
    count: str
    changed: list[ChangedValue]


@dataclass(frozen=True)
class FullRecipe:
    """All values of a run's recipe, (key, value) each."""

    title: str
    values: list[tuple[str, str]]


@dataclass(frozen=True)
class RecipeSection:
    """What templates/recipe.html.j2 shows.

    Args:
        runs: names of the runs.
        shipped: for a single run; None if there is no shipped recipe of its name.
        changed: for several runs: the keys whose values differ.
    """

    runs: list[str]
    shipped: ShippedComparison | None
    changed: list[ChangedValue]
    recipes: list[FullRecipe]


def recipe_section(runs: Sequence[Run]) -> RecipeSection | None:
    """Return the recipes of the runs; None if no run has one."""
    if not any(run.recipe for run in runs):
        return None
    shipped = None
    changed = []
    if len(runs) == 1:
        shipped = _compare_with_shipped(runs[0])
    else:
        all_values = [recipe_values(run) for run in runs]
        for key in differing_keys(all_values):
            texts = [format_value(values.get(key)) for values in all_values]
            changed.append(ChangedValue(key, texts))
    return RecipeSection(
        runs=[run.name for run in runs],
        shipped=shipped,
        changed=changed,
        recipes=[_full_recipe(run, is_single=len(runs) == 1) for run in runs],
    )


def _compare_with_shipped(run: Run) -> ShippedComparison | None:
    shipped = shipped_recipe(run)
    if shipped is None:
        return None
    values = recipe_values(run)
    changed = []
    for key in differing_keys([shipped.values, values]):
        changed.append(ChangedValue(key, [format_value(shipped.values.get(key)), format_value(values.get(key))]))
    return ShippedComparison(shipped.name, shipped.head, format_count(len(changed), "value"), changed)


def _full_recipe(run: Run, *, is_single: bool) -> FullRecipe:
    title = "The whole recipe"
    if not is_single:
        title = f"The whole recipe of {run.name}"
    values = []
    for key, value in recipe_values(run).items():
        values.append((key, format_value(value)))
    return FullRecipe(title, values)
