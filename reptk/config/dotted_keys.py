"""Dotted keys of recipes, such as `train.epochs`, and tables of them, such as `train`."""

from collections.abc import Iterable


def is_among(key: str, names: Iterable[str]) -> bool:
    """Return whether a key is one of these keys, or lies in one of them that is a table.

    Args:
        key: dotted, e.g. `trackers.wandb.project`.
        names: dotted keys of values or tables, e.g. `trackers`.
    """
    return any(key == name or key.startswith(f"{name}.") for name in names)
