"""Dotted keys of recipes, such as `train.epochs`, and tables of them, such as `train`."""

from collections.abc import Iterable, Mapping
from typing import Any


def is_among(key: str, names: Iterable[str]) -> bool:
    """Return whether a key is one of these keys, or lies in one of them that is a table.

    Args:
        key: dotted, e.g. `trackers.wandb.project`.
        names: dotted keys of values or tables, e.g. `trackers`.
    """
    return any(key == name or key.startswith(f"{name}.") for name in names)


def flatten(table: Any, prefix: str = "", *, with_unset: bool = False) -> dict[str, Any]:
    """Return the values of nested tables by dotted keys, e.g. `{"train.epochs": 2}`; a table without values has none.

    Args:
        table: nested mappings, or a value, whose key is the prefix.
        prefix: dotted key of the table.
        with_unset: keep the keys whose value is None.
    """
    if not isinstance(table, Mapping):
        if table is None and not with_unset:
            return {}
        return {prefix: table}
    values = {}
    for key, value in table.items():
        dotted_key = str(key)
        if prefix:
            dotted_key = f"{prefix}.{key}"
        values |= flatten(value, dotted_key, with_unset=with_unset)
    return values
