"""The key=value pairs of verbs that take tables of a recipe, but no recipe."""

from collections.abc import Sequence

from reptk import config
from reptk.core.errors import UsageError


def parse_overrides(
    pairs: Sequence[str], *, tables: Sequence[str], allowed: str, keys: Sequence[str] = ()
) -> config.Table:
    """Return what `key=value` pairs set.

    Args:
        pairs: of the command line.
        tables: keys that hold a table, e.g. `data`.
        allowed: what may be set, as the message of an error names it.
        keys: keys that hold a value, e.g. `size`.

    Raises:
        UsageError: another key is set, or a table as a whole to a value.
    """
    overrides = config.override({}, pairs)
    unknown_keys = sorted(set(overrides) - {*tables, *keys})
    if unknown_keys:
        raise UsageError(f"{', '.join(unknown_keys)}: what can be set here is {allowed}")
    for key in tables:
        table = overrides.get(key, {})
        if not isinstance(table, dict):
            raise UsageError(f"{key} is a table, whose keys are set one by one, e.g. {key}.name=...; got {table!r}")
    return overrides
