"""A recipe: the parts and numbers of one training run, read from TOML, overridden, checked and written back.

`load("tcl_selfsup_photos", ["train.epochs=5"])` gives a complete, frozen `Recipe`. The schema is closed: an unknown key
is an error that names its place and the nearest valid one, for reptk's own parts and for plugins alike, because a
part's arguments are checked against the signature of its registered factory.
"""

import tomllib
import warnings
from collections.abc import Sequence
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from reptk.config import signature
from reptk.config.registry import DATASETS, EVALUATORS, LOSSES, METHODS, VIEWS, Registry, load_plugin, nearest
from reptk.config.schema import Recipe, RecipeError, Table
from reptk.config.signature import Problem
from reptk.core.errors import UsageError

PARTS: dict[str, Registry] = {"data": DATASETS, "views": VIEWS, "method": METHODS, "loss": LOSSES}


def load(name_or_path: str | Path, overrides: Sequence[str] = (), *, plugins: Sequence[str] = ()) -> Recipe:
    """Find, override and check a recipe.

    Args:
        name_or_path: a recipe's name, a TOML file, or a run folder (which holds its `recipe.toml`).
        overrides: `key=value` pairs with dotted keys; the value is read as TOML, or as text where that fails. Changing
            a part's name drops the old part's arguments.
        plugins: `.py` files or modules that register further parts.

    Raises:
        UsageError: no such recipe, broken TOML, or (as `RecipeError`, with all problems at once) invalid content.
    """
    path = find(name_or_path)
    table = read(path)
    if any(pair.split("=")[0].strip() == "plugins" for pair in overrides):
        raise UsageError("plugins are named with --plugin, not with key=value")
    table["plugins"] = _load_plugins(path, table.get("plugins", []), plugins)
    if overrides:
        table.pop("expect", None)
    return validate({"name": path.stem, **override(table, overrides)})


def validate(table: Table) -> Recipe:
    """A `Recipe` from a table, every part completed with its defaults.

    Raises:
        RecipeError: listing all problems.
    """
    problems: list[Problem] = []
    complete = dict(table)
    for key, registry in PARTS.items():
        if key in table:
            complete[key] = _part(key, registry, table[key], problems)
    evaluators = table.get("eval") or {"knn": {}}
    if isinstance(evaluators, dict):
        complete["eval"] = {key: _evaluator(key, part, problems) for key, part in evaluators.items()}
    try:
        recipe = Recipe.model_validate(complete)
    except ValidationError as error:
        problems = [*signature.problems_of(error, Recipe), *problems]
    if not problems and recipe.optim.warmup_epochs >= recipe.train.epochs:
        epochs, warmup = recipe.train.epochs, recipe.optim.warmup_epochs
        problems = [
            ("optim.warmup_epochs", f"must be below train.epochs ({epochs}), got {warmup:g}; e.g. {epochs / 10:g}")
        ]
    if problems:
        raise RecipeError(str(table.get("name", "recipe")), problems)
    return recipe


def override(table: Table, pairs: Sequence[str]) -> Table:
    """A copy of `table` with `key=value` pairs set; names of parts first, since they drop the old arguments.

    Raises:
        UsageError: a pair without `=`, or a key that goes through a value.
    """
    table = {key: dict(value) if isinstance(value, dict) else value for key, value in table.items()}
    parsed = [_pair(text) for text in pairs]
    for keys, value in sorted(parsed, key=lambda pair: not _names_a_part(pair[0])):
        inner = table
        for key in keys[:-1]:
            inner[key] = dict(inner.get(key, {})) if isinstance(inner.get(key, {}), dict) else None
            if inner[key] is None:
                raise UsageError(f"{'.'.join(keys)}: {key} is a value, not a table")
            inner = inner[key]
        own_name = keys[-2] if keys[0] == "eval" and len(keys) > 1 else None
        if _names_a_part(keys) and inner.get("name", own_name) != value:
            inner.clear()
        inner[keys[-1]] = value
    return table


def read(path: Path) -> Table:
    """The TOML file as a table.

    Raises:
        UsageError: unreadable, or not TOML (with line and column).
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as cause:
        raise UsageError(f"cannot read {path}: {cause}") from cause
    except tomllib.TOMLDecodeError as cause:
        raise UsageError(f"{path} is not valid TOML: {cause}") from cause


def find(name_or_path: str | Path) -> Path:
    """Where a recipe lies: a file, a run folder, `recipes/NAME.toml` under the current folder, or an installed recipe.

    Raises:
        UsageError: nowhere, with the nearest names.
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
    if path.suffix == ".toml" or len(path.parts) > 1:
        raise UsageError(f"no recipe at {path} (looked in {path.parent.resolve()})")
    close = nearest(text, known)
    hint = f" Nearest: {', '.join(close)}." if close else ""
    raise UsageError(f"no recipe {text!r}.{hint} All of them: python -m reptk.recipe --list")


def available() -> dict[str, Path]:
    """Every recipe by name: shipped, from installed distributions (`reptk.recipes`), under ./recipes; the last wins."""
    folders = [Path(str(files("reptk.recipes")))]
    for point in entry_points(group="reptk.recipes"):
        try:
            folders.append(Path(str(files(point.value))))
        except Exception as cause:
            warnings.warn(f"the recipes of {point.value} cannot be found: {cause}", stacklevel=2)
    folders.append(Path("recipes"))
    found: dict[str, Path] = {}
    for path in (path for folder in folders for path in sorted(folder.glob("*.toml"))):
        if path.stem in found and not path.samefile(found[path.stem]) and path.parent == Path("recipes"):
            warnings.warn(f"{path} hides the recipe of that name in {found[path.stem].parent}", stacklevel=2)
        found[path.stem] = path
    return found


def build(registry: Registry, part: Table, **given: Any) -> Any:
    """Call the factory of a part with its arguments.

    Raises:
        UsageError: the factory refuses them.
    """
    chosen = {key: value for key, value in part.items() if key != "name"}
    try:
        return registry.get(part["name"])(**chosen, **given)
    except (ValueError, TypeError) as cause:
        raise UsageError(f"{registry.kind} {part['name']!r}: {cause}") from cause


def complete(key: str, part: Table) -> Table:
    """One part of a recipe (`key`: data, views, method, loss or eval.NAME), checked and completed.

    Raises:
        RecipeError: listing all problems.
    """
    problems: list[Problem] = []
    made = _part(key, PARTS.get(key, EVALUATORS), part, problems)
    if problems:
        raise RecipeError(key, problems)
    return made


def _part(key: str, registry: Registry, part: Any, problems: list[Problem]) -> Table:
    if not isinstance(part, dict) or not isinstance(part.get("name"), str):
        problems.append((f"{key}.name", f"say which {registry.kind}: {', '.join(registry.names())}"))
        return {"name": ""}
    try:
        factory = registry.get(part["name"])
    except UsageError as error:
        problems.append((f"{key}.name", str(error)))
        return part
    checked = signature.check(factory, {name: value for name, value in part.items() if name != "name"}, registry.given)
    problems.extend((f"{key}.{name}", _unknown_argument(registry, part["name"], name)) for name in checked.unknown)
    problems.extend((f"{key}.{place}", text) for place, text in checked.problems)
    return {"name": part["name"], **checked.complete}


def _evaluator(key: str, part: Any, problems: list[Problem]) -> Table:
    if not isinstance(part, dict):
        problems.append((f"eval.{key}", "must be a table"))
        return {}
    every = part.get("every_epochs", 0)
    if not isinstance(every, int) or isinstance(every, bool) or every < 0:
        problems.append((f"eval.{key}.every_epochs", f"must be an integer of at least 0, got {every!r}"))
    rest = {name: value for name, value in {"name": key, **part}.items() if name != "every_epochs"}
    complete = _part(f"eval.{key}", EVALUATORS, rest, problems)
    return {"name": complete.pop("name"), "every_epochs": every, **complete}


def _unknown_argument(registry: Registry, name: str, argument: str) -> str:
    accepted = signature.names(registry.get(name), registry.given)
    owners = [
        other for other, factory in registry.loaded().items() if argument in signature.names(factory, registry.given)
    ]
    belongs = f"; {argument} belongs to {', '.join(owners)}" if owners else signature.suggestion(argument, accepted)
    takes = f"It takes {', '.join(accepted)}" if accepted else "It takes no arguments"
    stop = "" if belongs.endswith("?") else "."
    return f"{name!r} has no argument {argument!r}{belongs}{stop} {takes}"


def _load_plugins(path: Path, recorded: Sequence[str], given: Sequence[str]) -> list[str]:
    """Import plugins; return them as paths that mean the same from any folder, or as module names."""
    if not isinstance(recorded, list) or not all(isinstance(spec, str) for spec in recorded):
        raise RecipeError(path.stem, [("plugins", f"must be a list of files and modules, got {recorded!r}")])
    for spec in recorded:
        _refuse_foreign(path, spec, given)
    local = [str((path.parent / spec).resolve()) if spec.endswith(".py") else spec for spec in recorded]
    asked = [str(Path(spec).resolve()) if spec.endswith(".py") else spec for spec in given]
    known = {Path(spec).name for spec in asked}
    unasked = [spec for spec in local if Path(spec).name not in known]
    for spec in unasked:
        if not spec.startswith("reptk.plugins."):
            warnings.warn(f"{path} brings a plugin, which is run: {spec}", stacklevel=3)
    specs = list(dict.fromkeys([*asked, *unasked]))
    for spec in specs:
        load_plugin(spec)
    return specs


def _refuse_foreign(path: Path, spec: str, given: Sequence[str]) -> None:
    """A recipe may bring plugin files of its own folder; code from anywhere else must be named by the user."""
    own_file = spec.endswith(".py") and (path.parent / spec).resolve().is_relative_to(path.parent.resolve())
    shipped = spec.startswith("reptk.plugins.")
    named = any(Path(spec).name == Path(other).name for other in given)
    if not (own_file or shipped or named):
        raise UsageError(f"{path} asks for the plugin {spec}. If you trust it, name it: --plugin {spec}")


def _pair(text: str) -> tuple[list[str], Any]:
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise UsageError(f"{text!r} is not key=value (e.g. train.epochs=5, loss.name=supcon)")
    try:
        return key.split("."), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.split("."), value


def _names_a_part(keys: Sequence[str]) -> bool:
    return keys[-1] == "name" and (keys[0] in PARTS or keys[0] == "eval")
