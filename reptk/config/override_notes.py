"""What overrides change besides what they say: arguments that are dropped, defaults that replace them, and what stays.

`supcon_digits loss.name=tcl` also replaces the loss's temperature by tcl's default and takes tcl's k1 and k2, while the
positives are still those of supcon_digits. A comparison of two losses has to know.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reptk.config.load import available, find
from reptk.config.part_tables import PARTS
from reptk.config.schema import Recipe, Table
from reptk.config.toml import read
from reptk.config.value_schedule import describe_value
from reptk.core.errors import UsageError

ENCODER_KEYS = ("stem", "head_layers", "head_width", "head_out", "head_norm", "drop_path", "weights")
"""What `encoder.backbone` leaves as it is."""

SCALED_LINEARLY = ("sgd", "nesterov", "momentum", "sgdw", "nesterovw", "lars", "nlars", "larc", "nlarc")
"""Optimizers whose learning rate is usually scaled with the batch size (Goyal et al. 2017, arXiv 1706.02677)."""

SCALED_BY_SQUARE_ROOT = ("adam", "adamw", "nadam", "nadamw", "radam", "radamw", "lamb", "lambc")
"""Optimizers whose learning rate is usually scaled with its square root (You et al. 2020, arXiv 1904.00962)."""


def override_notes(name_or_path: str | Path, overrides: Sequence[str], recipe: Recipe) -> list[str]:
    """Return what `recipe`, loaded from `name_or_path` with these overrides, changes besides the overrides; a line each.

    Args:
        name_or_path: as for `load`.
        overrides: as for `load`.
        recipe: its result.
    """
    original = read(find(name_or_path))
    keys = {pair.partition("=")[0] for pair in overrides}
    notes = []
    replaced = []
    for part in PARTS:
        if f"{part}.name" in keys and _name_in(original, part) != _name_of(recipe, part):
            replaced.append(part)
            notes += _replacement_note(part, original, recipe, keys)
    if "encoder.backbone" in keys and _section(original, "encoder").get("backbone") != recipe.encoder.backbone:
        notes.append(_backbone_note(original, recipe, keys))
    if {"data", "method", "loss"} & set(replaced):
        notes += _shipped_recipe_note(recipe)
    notes += _same_loss_note(recipe)
    notes += _warmup_note(original, recipe, keys)
    notes += _batch_size_note(original, recipe, keys)
    return notes


def _replacement_note(part: str, original: Table, recipe: Recipe, keys: set[str]) -> list[str]:
    """What `loss.name=tcl` or the like has changed in its table, and that the positives stay."""
    name = _name_of(recipe, part)
    before = _arguments(_section(original, part))
    after = _arguments(_part_of(recipe, part))
    dropped = {}
    for key, value in before.items():
        if f"{part}.{key}" not in keys and after.get(key) != value:
            dropped[key] = value
    defaults = {}
    for key, value in after.items():
        # A flag that is off, and an argument that is as it was, are no news.
        if f"{part}.{key}" not in keys and value is not False and before.get(key) != value:
            defaults[key] = value
    phrases = []
    if dropped:
        phrases.append(f"drops {_listed(dropped)} of {_name_in(original, part)}")
    if defaults:
        phrases.append(f"takes the defaults of {name}: {_listed(defaults)}")
    if part == "method" and recipe.loss is None and "loss" in original:
        phrases.append(f"drops the loss {_name_in(original, 'loss')}")
    if part == "loss" and "positives" in recipe.method and "method.positives" not in keys:
        phrases.append(f'method.positives stays "{recipe.method["positives"]}"')
    if not phrases:
        return []
    return [f"{part}.name={name}: {'; '.join(phrases)}"]


def _backbone_note(original: Table, recipe: Recipe, keys: set[str]) -> str:
    encoder = recipe.encoder.model_dump()
    unchanged = {}
    for key in ENCODER_KEYS:
        if f"encoder.{key}" not in keys and key in _section(original, "encoder"):
            unchanged[key] = encoder[key]
    encoder_text = f"{_listed(unchanged)} and " if unchanged else ""
    before = _section(original, "encoder").get("backbone")
    return (
        f"encoder.backbone={recipe.encoder.backbone}: {encoder_text}optim.{recipe.optim.name} with lr {recipe.optim.lr:g} stay "
        f"as chosen for {before}"
    )


def _shipped_recipe_note(recipe: Recipe) -> list[str]:
    """Name a recipe of this data set, method and loss, preferably with the same positives; none if there is none."""
    candidates = []
    for name, path in available().items():
        try:
            table = read(path)
        except UsageError:
            continue
        same_parts = all(_name_in(table, part) == _name_of(recipe, part) for part in ("data", "method", "loss"))
        if same_parts and name != recipe.name:
            candidates.append((name, _section(table, "method").get("positives")))
    positives = recipe.method.get("positives")
    candidates.sort(key=lambda candidate: candidate[1] != positives)
    if not candidates:
        return []
    name, other_positives = candidates[0]
    note = f"there is a recipe with settings chosen for it: python -m reptk.recipe {name}"
    if other_positives != positives:
        note += f" (positives by {other_positives})"
    return [note]


def _same_loss_note(recipe: Recipe) -> list[str]:
    """Say which published loss this is, if it is not the one that its name and its positives suggest."""
    if recipe.loss is None or recipe.loss.get("learn_temperature"):
        return []
    name = recipe.loss["name"]
    positives = recipe.method.get("positives")
    temperature = recipe.loss.get("temperature")
    if isinstance(temperature, dict):
        return []  # published losses have no schedule
    # NT-Xent averages over all other rows of an id, which are the views of one image in its paper: with the rows of one class
    # this is SupCon's `out` form, and SupCon with the views of one image is NT-Xent.
    if name == "simclr" and positives == "class":
        return [
            f"loss simclr with positives by class is SupCon, the same as loss.name=supcon loss.temperature={temperature:g}. "
            "For SimCLR itself: method.positives=instance"
        ]
    if name == "supcon" and positives == "instance" and recipe.loss.get("form") == "out":
        return [
            f"loss supcon with positives by instance is SimCLR, the same as loss.name=simclr loss.temperature={temperature:g}. "
            "For SupCon itself: method.positives=class"
        ]
    return []


def _warmup_note(original: Table, recipe: Recipe, keys: set[str]) -> list[str]:
    before = _section(original, "optim").get("warmup_epochs", 0)
    after = recipe.optim.warmup_epochs
    if "optim" in keys or "optim.warmup_epochs" in keys or before == after:
        return []
    return [
        f"train.epochs={recipe.train.epochs} instead of {original['train']['epochs']}: the warm-up is shortened in proportion, "
        f"from {before:g} to {after:g} epochs"
    ]


def _batch_size_note(original: Table, recipe: Recipe, keys: set[str]) -> list[str]:
    """Say that another batch size leaves the learning rate as it is, and what the usual rule would make of it."""
    before = _section(original, "train").get("batch_size")
    after = recipe.train.batch_size
    # With another optimizer, the recipe's learning rate is no reference.
    is_lr_chosen = bool(keys & {"optim", "optim.lr", "optim.name"})
    if is_lr_chosen or not isinstance(before, int) or before == after:
        return []
    optimizer, lr = recipe.optim.name, recipe.optim.lr
    ratio = after / before
    if optimizer in SCALED_LINEARLY:
        rule, scaled_lr = "linear", lr * ratio
    elif optimizer in SCALED_BY_SQUARE_ROOT:
        rule, scaled_lr = "square-root", lr * math.sqrt(ratio)
    else:
        return []
    return [
        f"train.batch_size={after} instead of {before}: optim.lr stays {lr:g}; by the {rule} rule, usual for {optimizer}, it "
        f"would be optim.lr={scaled_lr:.3g}"
    ]


def _part_of(recipe: Recipe, part: str) -> Table:
    """Return a part's table; empty for a loss that the method does not take."""
    tables = {"data": recipe.data, "views": recipe.views, "method": recipe.method, "loss": recipe.loss}
    return tables[part] or {}


def _name_of(recipe: Recipe, part: str) -> str | None:
    return _part_of(recipe, part).get("name")


def _name_in(table: Table, part: str) -> str | None:
    return _section(table, part).get("name")


def _section(table: Table, key: str) -> Table:
    """Return a table of a file as it is; empty if it is missing or no table."""
    section = table.get(key)
    if not isinstance(section, dict):
        return {}
    return section


def _arguments(part: Table) -> Table:
    return {key: value for key, value in part.items() if key != "name"}


def _listed(arguments: Table) -> str:
    return ", ".join(f"{key} {_text(value)}" for key, value in arguments.items())


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, bool):
        return str(value).lower()
    return describe_value(value)
