"""Find, override, validate and build what a recipe names.

`load("tcl_selfsup_photos", ["train.epochs=5"])` returns a complete, frozen `Recipe`. An unknown key is an error that names
the key and the nearest valid one. This holds for the arguments of plugins, too, because a part's arguments are checked
against the signature of its registered factory.
"""

import tomllib
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from reptk.config import signature, toml
from reptk.config.installed import installed_entry_points
from reptk.config.plugins import load_recipe_plugins
from reptk.config.registry import DATASETS, EVALUATORS, LOSSES, METHODS, VIEWS, Registry, nearest_hint
from reptk.config.schema import Recipe, RecipeError, Table
from reptk.config.signature import Problem
from reptk.config.stage import complete_stage
from reptk.config.toml import read
from reptk.config.value_schedule import ValueSchedule, schedules_in
from reptk.core.errors import UsageError
from reptk.core.files import real_path

PARTS: dict[str, Registry] = {"data": DATASETS, "views": VIEWS, "method": METHODS, "loss": LOSSES}
"""The tables of a recipe that name a registered part."""

SCHEDULED_TABLES = ("loss", "method")
"""Tables of parts whose numbers may have a schedule, as `optim.weight_decay` may; see `reptk.config.value_schedule`."""


LABEL_KEYS = ("labelled", "only_labelled")
"""Keys of `[data]` that belong to every data set: which training images have labels (`reptk.data.label_selection`)."""


def load(
    name_or_path: str | Path,
    overrides: Sequence[str] = (),
    *,
    plugins: Sequence[str] = (),
    trust: bool = False,
    shorten_warmup: bool = True,
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
    original, remaining_overrides = complete_stage(path.stem, table, overrides)
    table = override(original, remaining_overrides)
    table["overrides"] = _merge_overrides(original.get("overrides", []), overrides)
    sets_warmup = "optim" in keys or "optim.warmup_epochs" in keys
    if shorten_warmup and not sets_warmup:
        table = _with_proportional_warmup(table, original)
    changes_loss = any(key.startswith("loss.") for key in keys)
    if "method.name" in keys and not changes_loss and not _takes_loss(table["method"]):
        table.pop("loss", None)
    return validate({"name": path.stem, **table})


def validate(table: Table) -> Recipe:
    """Turn a table into a `Recipe`, every part completed with its defaults.

    Raises:
        RecipeError: listing all problems.
    """
    problems: list[Problem] = []
    completed = dict(table)
    for key, registry in PARTS.items():
        if key in table:  # pydantic reports tables that are missing
            completed[key] = _complete_part(key, registry, table[key], problems)
    problems += _check_loss_table(table)
    evaluators = table.get("eval") or {"knn": {}}
    if isinstance(evaluators, dict):
        completed["eval"] = {}
        for key, part in evaluators.items():
            completed["eval"][key] = _complete_evaluator(key, part, problems)
    try:
        recipe = Recipe.model_validate(completed)
    except ValidationError as error:
        problems = [*signature.problems_of(error, Recipe), *problems]
    if not problems:
        problems = [*_check_warmup(recipe), *_check_milestones(recipe)]
    if problems:
        raise RecipeError(str(table.get("name", "recipe")), problems)
    return recipe


def override(table: Table, pairs: Sequence[str]) -> Table:
    """Return a copy of `table` with `key=value` pairs set.

    Names of parts are set first, since they drop the arguments of the part before.

    Raises:
        UsageError: a pair without `=`, or a key that leads through a value.
    """
    table = dict(table)
    # False sorts before True, and a sort keeps the order of equal items, so that of two values of a key the last one counts.
    parsed = sorted(map(_parse_pair, pairs), key=lambda pair: not _is_part_name(pair.keys))
    keys = {".".join(pair.keys) for pair in parsed}
    for pair in parsed:
        _set(table, pair)
        alternative = _replaced_alternative(pair)
        if alternative is not None and f"encoder.{alternative}" not in keys:
            table["encoder"].pop(alternative, None)
    return table


def _merge_overrides(earlier: Any, pairs: Sequence[str]) -> Any:
    """Return the overrides of a recipe that is overridden once more. A later value of a key replaces the earlier one."""
    if not isinstance(earlier, list) or not all(isinstance(pair, str) for pair in earlier):
        return earlier  # reported by the validation
    merged = list(earlier)
    for pair in sorted(pairs, key=lambda pair: not _is_part_name(pair.partition("=")[0].split("."))):
        key = pair.partition("=")[0]
        if _is_part_name(key.split(".")) and pair not in merged:
            # A new part takes none of the arguments of the one before.
            prefix = key.removesuffix("name")
            merged = [other for other in merged if not other.startswith(prefix)]
        # A value also replaces what was set inside of it, e.g. loss.temperature=0.1 the start of a schedule.
        merged = [other for other in merged if not f"{other.partition('=')[0]}.".startswith(f"{key}.")]
        alternative = _replaced_alternative(_parse_pair(pair))
        if alternative is not None and not any(other.startswith(f"encoder.{alternative}=") for other in pairs):
            merged = [other for other in merged if not other.startswith(f"encoder.{alternative}=")]
        merged.append(pair)
    return merged


def _replaced_alternative(pair: "_Pair") -> str | None:
    """Return the key of `[encoder]` that a pair replaces: pretrained weights are timm's, or those of a file."""
    if pair.keys == ["encoder", "weights"]:
        return "pretrained"
    if pair.keys == ["encoder", "pretrained"] and pair.value is True:
        return "weights"
    return None


def _with_proportional_warmup(table: Table, original: Table) -> Table:
    """Return the table with the original's warm-up shortened as the run is; unchanged if the run is not shorter."""
    epochs = _number(table, "train", "epochs")
    original_epochs = _number(original, "train", "epochs")
    warmup = _number(original, "optim", "warmup_epochs")
    is_shorter = 0 < epochs < original_epochs
    if not is_shorter or not 0 < warmup < original_epochs:
        return table
    shortened = round(warmup * epochs / original_epochs, 6)
    return {**table, "optim": {**table["optim"], "warmup_epochs": shortened}}


def _number(table: Table, section: str, key: str) -> float:
    """Return a number of a table that is not validated yet; 0 if it is missing or no number."""
    part = table.get(section)
    value = part.get(key, 0) if isinstance(part, dict) else 0
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0
    return value


def _set(table: Table, pair: "_Pair") -> None:
    """Set a dotted key. Inner tables are copied before they are changed, since the caller's table shares them."""
    keys = pair.keys
    inner = table
    for key in keys[:-1]:
        child = inner.get(key, {})
        is_number = isinstance(child, int | float) and not isinstance(child, bool)
        if is_number and _may_have_schedule(keys[:-1]):
            child = {"start": child}
        if not isinstance(child, dict):
            raise UsageError(f"{'.'.join(keys)}: {key} is a value, not a table")
        inner[key] = dict(child)
        inner = inner[key]
    value = _suitable_value(pair, inner)
    if _is_part_name(keys):
        # An evaluator without a name is called by its key: [eval.knn].
        implied_name = keys[-2] if keys[0] == "eval" else None
        if inner.get("name", implied_name) != value:
            inner.clear()
    inner[keys[-1]] = value


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


def build(registry: Registry, part: Table, **supplied: Any) -> Any:
    """Build a part from its table.

    Args:
        registry: of the part's kind.
        part: `{name, ...arguments}`.
        supplied: values that are not in the table, e.g. `encoder` and `views` for a method. Those that the factory has no
            parameter for are left out.

    Raises:
        UsageError: the factory refuses the arguments.
    """
    arguments = _arguments(part)
    if registry is DATASETS:
        options = label_options(part)
        arguments = {key: value for key, value in arguments.items() if key not in options}
    try:
        return registry.build(part["name"], arguments, supplied)
    except (ValueError, TypeError) as cause:
        raise UsageError(f"{registry.kind} {part['name']!r}: {cause}") from cause


def label_options(part: Table) -> Table:
    """Return those of `LABEL_KEYS` that a `[data]` table sets and that are no arguments of the data set itself."""
    accepted = signature.names(DATASETS.get(part["name"]))
    return {key: part[key] for key in LABEL_KEYS if key in part and key not in accepted}


def complete(key: str, part: Table) -> Table:
    """Check one part of a recipe (`key`: data, views, method, loss or eval.NAME) and complete it with its defaults.

    Raises:
        RecipeError: listing all problems.
    """
    problems: list[Problem] = []
    completed = _complete_part(key, PARTS.get(key, EVALUATORS), part, problems)
    if problems:
        raise RecipeError(key, problems)
    return completed


def _complete_part(key: str, registry: Registry, part: Any, problems: list[Problem]) -> Table:
    """Return the part with its defaults, and append what is wrong with it to `problems`."""
    if not isinstance(part, dict) or not isinstance(part.get("name"), str):
        problems.append((f"{key}.name", f"say which {registry.kind}: {', '.join(registry.names())}"))
        return {"name": ""}
    name = part["name"]
    try:
        factory = registry.get(name)
    except UsageError as error:
        problems.append((f"{key}.name", str(error)))
        return part
    arguments = _arguments(part)
    label_keys: Table = {}
    if key == "data":
        label_keys = _complete_label_keys(label_options(part), problems)
        arguments = {argument: value for argument, value in arguments.items() if argument not in label_keys}
    schedules: dict[str, Table] = {}
    if key in SCHEDULED_TABLES:
        for argument, table in schedules_in(factory, arguments).items():
            schedules[argument] = _complete_schedule(f"{key}.{argument}", table, problems)
        arguments = _check_end_values(key, factory, arguments, schedules, problems)
    checked = signature.check(factory, arguments, registry.supplied)
    for argument in checked.unknown:
        problems.append((f"{key}.{argument}", _unknown_argument(registry, name, argument)))
    for inner_key, message in checked.problems:
        # The value of a schedule that was checked is its start.
        suffix = ".start" if inner_key in schedules else ""
        problems.append((f"{key}.{inner_key}{suffix}", message))
    return {"name": name, **checked.complete, **schedules, **label_keys}


def _complete_label_keys(options: Table, problems: list[Problem]) -> Table:
    """Return the `label_options` of a data set with their defaults, and append what is wrong with them to `problems`."""
    if not options:
        return {}
    completed = dict(options)
    labelled = completed.get("labelled")
    is_number = isinstance(labelled, int | float) and not isinstance(labelled, bool)
    if is_number and 0 < labelled <= 1:
        completed["labelled"] = float(labelled)
    elif labelled is not None and (is_number or not isinstance(labelled, str) or not labelled):
        problems.append(
            ("data.labelled", f"must be a share above 0 and at most 1, or the file of a list, got {labelled!r}")
        )
    only_labelled = completed.setdefault("only_labelled", False)
    if not isinstance(only_labelled, bool):
        problems.append(("data.only_labelled", f"must be true or false, got {only_labelled!r}"))
    return completed


def _complete_schedule(key: str, table: Table, problems: list[Problem]) -> Table:
    """Return a schedule in place of a number with its defaults, and append what is wrong with it to `problems`."""
    try:
        schedule = ValueSchedule.model_validate(table)
    except ValidationError as error:
        for inner_key, message in signature.problems_of(error, ValueSchedule):
            problems.append((f"{key}.{inner_key}".removesuffix("."), message))
        return dict(table)
    return schedule.model_dump(mode="json", exclude_none=True)


def _check_end_values(
    key: str,
    factory: Callable[..., Any],
    arguments: dict[str, Any],
    schedules: Mapping[str, Table],
    problems: list[Problem],
) -> dict[str, Any]:
    """Check the ends of schedules by the bounds of their arguments, and return the arguments with the starts in their places.

    An argument whose schedule lacks one of these is left out, since that is reported already.
    """
    plain = dict(arguments)
    for argument, table in schedules.items():
        plain.pop(argument)
        if isinstance(table.get("start"), float) and isinstance(table.get("end"), float):
            plain[argument] = table["start"]
            for inner_key, message in signature.check(factory, {argument: table["end"]}).problems:
                if inner_key == argument:
                    problems.append((f"{key}.{argument}.end", message))
    return plain


def _arguments(part: Table) -> dict[str, Any]:
    return {key: value for key, value in part.items() if key != "name"}


def _complete_evaluator(key: str, part: Any, problems: list[Problem]) -> Table:
    if not isinstance(part, dict):
        problems.append((f"eval.{key}", "must be a table"))
        return {}
    # `every_epochs` belongs to the recipe, not to the evaluator: no factory has a parameter of that name.
    every_epochs = part.get("every_epochs", 0)
    # bool is a subclass of int, and `true` is no number of epochs.
    if not isinstance(every_epochs, int) or isinstance(every_epochs, bool) or every_epochs < 0:
        problems.append((f"eval.{key}.every_epochs", f"must be an integer of at least 0, got {every_epochs!r}"))
    evaluator = {"name": key, **part}
    evaluator.pop("every_epochs", None)
    completed = _complete_part(f"eval.{key}", EVALUATORS, evaluator, problems)
    return {"name": completed.pop("name"), "every_epochs": every_epochs, **completed}


def _check_loss_table(table: Table) -> list[Problem]:
    """Check that there is a `[loss]` table if the method has a parameter `loss`, and none if it has not."""
    method = table.get("method")
    if not isinstance(method, dict) or method.get("name") not in METHODS.names():
        return []  # reported already
    name = method["name"]
    if _takes_loss(method) and "loss" not in table:
        return [("loss", "is missing")]
    if not _takes_loss(method) and "loss" in table:
        return [("loss", f"method {name!r} takes no loss; remove the [loss] table")]
    return []


def _takes_loss(method: Table) -> bool:
    """Whether the factory of this `[method]` table has a parameter `loss`; True if it is unknown, which is reported."""
    if not isinstance(method, dict) or method.get("name") not in METHODS.names():
        return True
    return METHODS.takes(method["name"], "loss")


def _check_warmup(recipe: Recipe) -> list[Problem]:
    epochs, warmup = recipe.train.epochs, recipe.optim.warmup_epochs
    if warmup < epochs:
        return []
    return [("optim.warmup_epochs", f"must be below train.epochs ({epochs}), got {warmup:g}; e.g. {epochs / 10:g}")]


def _check_milestones(recipe: Recipe) -> list[Problem]:
    is_multistep = recipe.optim.schedule == "multistep"
    if is_multistep and not recipe.optim.milestones:
        return [("optim.milestones", "is missing: shares of the run, e.g. [0.6, 0.75, 0.9], for schedule 'multistep'")]
    if recipe.optim.milestones and not is_multistep:
        return [("optim.milestones", f"is for schedule 'multistep', and optim.schedule is {recipe.optim.schedule!r}")]
    return []


def _unknown_argument(registry: Registry, name: str, argument: str) -> str:
    """Return a message such as `'tcl' has no argument 'temprature'; did you mean 'temperature'? It takes temperature, k1`."""
    accepted = signature.names(registry.get(name), registry.supplied)
    # Most often the name of the part was changed, and the argument belongs to the part before.
    parts_with_argument = []
    for other, factory in registry.loaded().items():
        if argument in signature.names(factory, registry.supplied):
            parts_with_argument.append(other)
    known = accepted
    if registry is DATASETS:
        known = [*accepted, *LABEL_KEYS]
    suggestion = signature.suggestion(argument, known)
    if parts_with_argument:
        hint = f"; {argument} belongs to {', '.join(parts_with_argument)}."
    elif suggestion:
        hint = suggestion
    else:
        hint = "."
    parameters = ", ".join(accepted) or "no arguments"
    return f"{name!r} has no argument {argument!r}{hint} It takes {parameters}"


class _Pair(NamedTuple):
    """A dotted key, its value read as TOML, and the text of the value as it was typed."""

    keys: list[str]
    value: Any
    text: str


def _parse_pair(text: str) -> _Pair:
    key, equals, value = text.partition("=")
    keys = key.split(".")
    if not equals or not all(keys):
        raise UsageError(f"{text!r} is not key=value (e.g. train.epochs=5, loss.name=supcon)")
    if "\0" in text:
        raise UsageError(f"{text!r} holds the character NUL")
    try:
        table = toml.parse(f"value = {value}")
    except tomllib.TOMLDecodeError:
        return _Pair(keys, value, value)  # text without quotes, which a shell would have removed anyway
    if len(table) > 1:  # a line break, and a second key behind it
        return _Pair(keys, value, value)
    return _Pair(keys, table["value"], value)


def _suitable_value(pair: _Pair, part: Table) -> Any:
    """Return the value of a pair, or what was typed where the key takes text: a folder may have the name 2024 or true.

    Args:
        pair: the pair.
        part: the table that holds the last key.
    """
    if isinstance(pair.value, str):
        return pair.value
    types = _types_of_key(pair.keys, part)
    takes_text_alone = []
    for expected in types:
        takes_text_alone.append(not signature.accepts(expected, pair.value) and signature.accepts(expected, pair.text))
    if takes_text_alone and all(takes_text_alone):
        return pair.text
    return pair.value


def _types_of_key(keys: Sequence[str], part: Table) -> list[Any]:
    """Return the type of a key's value. If it depends on a part that is not known yet, those of all parts with the key."""
    if _is_part_name(keys):
        return [str]
    registry = None
    name = part.get("name")
    if len(keys) == 2:
        registry = PARTS.get(keys[0])
    elif len(keys) == 3 and keys[0] == "eval":
        registry = EVALUATORS
        name = part.get("name", keys[1])
    if registry is None:
        return signature.types_of_field(Recipe, keys)
    if name in registry.names():
        factories = [registry.get(name)]
    else:
        factories = list(registry.loaded().values())
    types = []
    for factory in factories:
        types += signature.types_of_parameter(factory, keys[-1])
    return types


def _may_have_schedule(keys: Sequence[str]) -> bool:
    """Whether a dotted key may be that of a number for which there may be a schedule."""
    return len(keys) == 2 and (keys[0] in SCHEDULED_TABLES or list(keys) == ["optim", "weight_decay"])


def _is_part_name(keys: Sequence[str]) -> bool:
    """Whether a dotted key names a part, e.g. loss.name or eval.probe.name."""
    return len(keys) > 1 and keys[-1] == "name" and (keys[0] in PARTS or keys[0] == "eval")
