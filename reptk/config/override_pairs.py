"""Overrides of a recipe: `key=value` pairs with dotted keys, whose values are read as TOML."""

import tomllib
from collections.abc import Sequence
from typing import Any, NamedTuple

from reptk.config import signature, toml
from reptk.config.dotted_keys import is_among
from reptk.config.part_tables import PARTS, SCHEDULED_TABLES
from reptk.config.registry import EVALUATORS, TRACKERS
from reptk.config.schema import Recipe, Table
from reptk.core.errors import UsageError


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


def merge_overrides(earlier: Any, pairs: Sequence[str]) -> Any:
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
        merged = [other for other in merged if not is_among(other.partition("=")[0], [key])]
        alternative = _replaced_alternative(_parse_pair(pair))
        if alternative is not None and not any(other.startswith(f"encoder.{alternative}=") for other in pairs):
            merged = [other for other in merged if not other.startswith(f"encoder.{alternative}=")]
        merged.append(pair)
    return merged


def with_proportional_warmup(table: Table, original: Table) -> Table:
    """Return the table with the original's warm-up shortened as the run is; unchanged if the run is not shorter."""
    epochs = _number(table, "train", "epochs")
    original_epochs = _number(original, "train", "epochs")
    warmup = _number(original, "optim", "warmup_epochs")
    is_shorter = 0 < epochs < original_epochs
    if not is_shorter or not 0 < warmup < original_epochs:
        return table
    shortened = round(warmup * epochs / original_epochs, 6)
    return {**table, "optim": {**table["optim"], "warmup_epochs": shortened}}


def value_as_text(pair: str) -> str:
    """Return what follows the equals sign of a `key=value` pair whose value is text, without the quotes of TOML."""
    parsed = _parse_pair(pair)
    if isinstance(parsed.value, str):
        return parsed.value
    return parsed.text


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


def _set(table: Table, pair: _Pair) -> None:
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
    elif len(keys) == 3 and keys[0] == "trackers":
        registry = TRACKERS
        name = keys[1]
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


def _replaced_alternative(pair: _Pair) -> str | None:
    """Return the key of `[encoder]` that a pair replaces: pretrained weights are timm's, or those of a file."""
    if pair.keys == ["encoder", "weights"]:
        return "pretrained"
    if pair.keys == ["encoder", "pretrained"] and pair.value is True:
        return "weights"
    return None


def _may_have_schedule(keys: Sequence[str]) -> bool:
    """Whether a dotted key may be that of a number for which there may be a schedule."""
    return len(keys) == 2 and (keys[0] in SCHEDULED_TABLES or list(keys) == ["optim", "weight_decay"])


def _is_part_name(keys: Sequence[str]) -> bool:
    """Whether a dotted key names a part, e.g. loss.name or eval.probe.name."""
    return len(keys) > 1 and keys[-1] == "name" and (keys[0] in PARTS or keys[0] == "eval")


def _number(table: Table, section: str, key: str) -> float:
    """Return a number of a table that is not validated yet; 0 if it is missing or no number."""
    part = table.get(section)
    value = part.get(key, 0) if isinstance(part, dict) else 0
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0
    return value
