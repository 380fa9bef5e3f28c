"""Find and load recipes.

`load("tcl_selfsup_photos", ["train.epochs=5"])` returns a complete, frozen `Recipe`. An unknown key is an error that names
the key and the nearest valid one. This holds for the arguments of plugins, too, because a part's arguments are checked
against the signature of its registered factory.
"""

import warnings
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from reptk.config.installed import installed_entry_points
from reptk.config.override_pairs import merge_overrides, override, with_proportional_warmup
from reptk.config.part_tables import takes_loss
from reptk.config.plugins import load_recipe_plugins
from reptk.config.registry import nearest_hint
from reptk.config.run_paths import describe_no_run
from reptk.config.schema import Recipe
from reptk.config.stage import RUN_OPTION, complete_stage
from reptk.config.toml import read
from reptk.config.validation import validate
from reptk.core.errors import UsageError
from reptk.core.files import real_path


def load(
    name_or_path: str | Path,
    overrides: Sequence[str] = (),
    *,
    plugins: Sequence[str] = (),
    trust: bool = False,
    shorten_warmup: bool = True,
    start_option: str = RUN_OPTION,
) -> Recipe:
    """Find, override and validate a recipe.

    Args:
        name_or_path: a recipe's name, a TOML file, or a run folder (which holds its `recipe.toml`).
        overrides: `key=value` pairs with dotted keys; the value is read as TOML, or as text if it is not valid TOML or if the
            key takes text alone. Changing a part's name drops the previous part's arguments, and a method without a loss
            drops `[loss]`; `reptk.config.override_notes` says what that was. `start.run=FOLDER` names the run that a stage
            starts from.
        plugins: `.py` files or modules that register further parts.
        trust: execute the plugin files that the recipe brings in its own folder. A recipe that you did not write may bring any
            code.
        shorten_warmup: if the overrides shorten the run and do not set its warm-up, shorten that in proportion. A run that is
            resumed keeps its warm-up.
        start_option: what a user writes before the folder of the run that a stage starts from, for messages: `start.run=`, or
            `--from ` at the command line.

    Raises:
        UsageError: no such recipe, broken TOML, or (as `RecipeError`, with all problems at once) invalid content.
        DataError: a stage starts from a run that has no model.
    """
    path = find(name_or_path)
    table = read(path)
    keys = [pair.partition("=")[0].strip() for pair in overrides]
    if "plugins" in keys:
        raise UsageError("plugins are named with --plugin, not with key=value")
    if "overrides" in keys:
        raise UsageError("overrides lists the key=value pairs of the command, and is not set by one of them")
    # First of all, since everything below looks parts up by their names.
    table["plugins"] = load_recipe_plugins(path, table.get("plugins", []), plugins, trust=trust)
    if overrides:
        # The result that was measured holds for exactly the recipe in the file.
        table.pop("expect", None)
    original, remaining_overrides = complete_stage(path.stem, table, overrides, option=start_option)
    table = override(original, remaining_overrides)
    table["overrides"] = merge_overrides(original.get("overrides", []), overrides)
    sets_warmup = "optim" in keys or "optim.warmup_epochs" in keys
    if shorten_warmup and not sets_warmup:
        table = with_proportional_warmup(table, original)
    changes_loss = any(key.startswith("loss.") for key in keys)
    if "method.name" in keys and not changes_loss and not takes_loss(table["method"]):
        table.pop("loss", None)
    return validate({"name": path.stem, **table})


def find(name_or_path: str | Path) -> Path:
    """Return the file of a recipe.

    Args:
        name_or_path: a run folder with a recipe.toml, a TOML file, or the name of an `available` recipe.

    Raises:
        UsageError: there is none, with the nearest names.
    """
    text = str(name_or_path)
    path = Path(text)
    if (path / "recipe.toml").is_file():
        return path / "recipe.toml"
    if path.is_file():
        return path
    known = available()
    if text in known:
        return known[text]
    if path.is_dir() and len(path.parts) > 1:
        no_run = describe_no_run(text)
        raise UsageError(f"no recipe at {path}: {no_run.what}{no_run.hint()}")
    if path.suffix == ".toml" or len(path.parts) > 1:
        raise UsageError(f"no recipe at {path} (looked in {real_path(path.parent)})")
    raise UsageError(f"no recipe {text!r}.{nearest_hint(text, known)} All of them: python -m reptk.recipe --list")


def available() -> dict[str, Path]:
    """Return the files of all recipes by name.

    They are shipped with reptk, come with installed distributions (entry points in `reptk.recipes`, whose value is a package
    of TOML files), or are in the folder `recipes` of the working directory. Of several with one name the last counts, with
    a warning if it is a local one.
    """
    folders = [Path(str(files("reptk.recipes")))]
    for point in installed_entry_points("reptk.recipes"):
        try:
            folders.append(Path(str(files(point.value))))
        except Exception as cause:  # whatever importing that package raises; the other recipes can be used
            warnings.warn(f"the recipes of {point.value} cannot be found: {cause}", stacklevel=2)
    local = Path("recipes")
    recipes: dict[str, Path] = {}
    for folder in [*folders, local]:
        for path in sorted(folder.glob("*.toml")):
            earlier = recipes.get(path.stem)
            # In a checkout, ./recipes may be the shipped folder itself.
            if folder == local and earlier is not None and not path.samefile(earlier):
                warnings.warn(f"{path} hides the recipe of that name in {earlier.parent}", stacklevel=2)
            recipes[path.stem] = path
    return recipes
