"""The recipe behind a run: complete, beside the recipe it came from, and as the command that repeats it."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from reptk import config
from reptk.core.errors import ReptkError
from reptk.report.runs import Run

APART = ("name", "expect", "plugins")
"""What does not change a training, or is told elsewhere."""

Flat = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """A shipped recipe, and what its head says of it."""

    name: str
    head: str
    flat: Flat


def flat_of(run: Run) -> Flat:
    """The run's recipe by dotted keys, with every default where its parts are known."""
    try:
        return flatten(config.validate(run.recipe).model_dump(mode="json"))
    except ReptkError:
        return flatten(run.recipe)


def source_of(run: Run) -> Source | None:
    """The recipe of that name among those shipped or installed; None if there is none any more."""
    path = config.available().get(str(run.recipe.get("name", "")))
    if path is None:
        return None
    try:
        recipe = config.validate({"name": path.stem, **config.read(path)})
    except ReptkError:
        return None
    return Source(path.stem, _head(path), flatten(recipe.model_dump(mode="json")))


def differing(recipes: Sequence[Flat]) -> list[str]:
    """Keys that not all of the recipes give the same value, in the order of a recipe."""
    keys = dict.fromkeys(key for recipe in recipes for key in recipe)
    return [
        key
        for key in keys
        if key.partition(".")[0] not in APART and any(recipe.get(key) != recipes[0].get(key) for recipe in recipes)
    ]


def command_of(run: Run, source: Source | None) -> str:
    """What to type to train the same again: by the shipped recipe's name and overrides if that gives this very recipe."""
    if source is not None and not run.recipe.get("plugins"):
        own = flat_of(run)
        changed = differing([source.flat, own])
        pairs = [f"{key}={_toml(own[key])}" for key in changed if key in own]
        if _gives(source.name, pairs, own):
            return " ".join(["python -m reptk.recipe", source.name, *map(shlex.quote, pairs)])
    return f"python -m reptk.recipe {shlex.quote(str(run.folder / 'recipe.toml'))}"


def flatten(table: Any, prefix: str = "") -> Flat:
    """A nested table by dotted keys, without what is unset."""
    if not isinstance(table, dict):
        return {} if table is None else {prefix: table}
    inner = (flatten(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in table.items())
    return {key: value for part in inner for key, value in part.items()}


def said(value: Any) -> str:
    """A value of a recipe in a few words."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_nested(inner)}" for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_nested(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else "unset" if value is None else str(value)


def _nested(value: Any) -> str:
    return f"({said(value)})" if isinstance(value, (dict, list, tuple)) else said(value)


def _gives(name: str, pairs: Sequence[str], wanted: Flat) -> bool:
    try:
        made = flatten(config.load(name, pairs).model_dump(mode="json"))
    except ReptkError:
        return False
    return not differing([made, wanted]) and not any("\n" in pair for pair in pairs)


def _toml(value: Any) -> str:
    text = tomli_w.dumps({"value": value}).strip().removeprefix("value = ")
    return " ".join(text.split()) if isinstance(value, list) else text


def _head(path: Path) -> str:
    """The comment lines that a recipe begins with."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").removeprefix(" "))
    return "\n".join(lines)
