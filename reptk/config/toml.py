"""Reading TOML, with one kind of error for all that is wrong with it."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reptk.config.schema import Table
from reptk.core.errors import UsageError
from reptk.core.foreign_files import MAX_TOML_BYTES, read_bytes

MAX_INTEGER = 10**300


def read(path: Path) -> Table:
    """Read a TOML file.

    Raises:
        UsageError: unreadable, or not TOML (with line and column).
    """
    try:
        content = read_bytes(path, MAX_TOML_BYTES)
    except OSError as cause:
        raise UsageError(f"cannot read {path}: {cause}") from cause
    try:
        # Names of files in a run's recipe may hold bytes that are not UTF-8.
        return parse(content.decode("utf-8", "surrogateescape"))
    except tomllib.TOMLDecodeError as cause:
        try:
            content.decode("utf-8")
        except UnicodeDecodeError as encoding:
            raise UsageError(f"cannot read {path}: {encoding}") from cause
        raise UsageError(f"{path} is not valid TOML: {cause}") from cause


def parse(text: str) -> Table:
    """Parse TOML.

    Raises:
        tomllib.TOMLDecodeError: it is not valid, is too deeply nested, holds an integer of thousands of digits, or a text
            with the character NUL, which no path can hold.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except (RecursionError, ValueError) as cause:
        raise tomllib.TOMLDecodeError(str(cause)) from cause
    if _holds(table, lambda value: isinstance(value, str) and "\0" in value):
        raise tomllib.TOMLDecodeError("a text holds the character NUL")
    if _holds(table, lambda value: isinstance(value, int) and abs(value) > MAX_INTEGER):
        raise tomllib.TOMLDecodeError("an integer is larger than any floating-point number")
    return table


def _holds(value: Any, is_refused: Callable[[Any], bool]) -> bool:
    """Whether a value, or one inside of it, a key included, is refused."""
    if isinstance(value, dict):
        return any(is_refused(key) or _holds(inner, is_refused) for key, inner in value.items())
    if isinstance(value, list):
        return any(_holds(inner, is_refused) for inner in value)
    return is_refused(value)
