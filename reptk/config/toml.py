"""Reading TOML, with one kind of error for all that is wrong with it."""

import tomllib
from pathlib import Path
from typing import Any

from reptk.config.schema import Table
from reptk.core.errors import UsageError
from reptk.core.foreign_files import MAX_TOML_BYTES, read_bytes


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
    if _holds_nul(table):
        raise tomllib.TOMLDecodeError("a text holds the character NUL")
    return table


def _holds_nul(value: Any) -> bool:
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any(_holds_nul(key) or _holds_nul(inner) for key, inner in value.items())
    if isinstance(value, list):
        return any(map(_holds_nul, value))
    return False
