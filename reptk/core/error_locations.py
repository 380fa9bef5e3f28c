"""In which line of a user's code an error was raised: not in a library, which its author does not know."""

import os
import sysconfig
import traceback
from pathlib import Path
from typing import NamedTuple

PACKAGE_FOLDER = Path(__file__).parents[1]

INSTALLED_FOLDERS = ("site-packages", "dist-packages")

STANDARD_LIBRARY = Path(sysconfig.get_paths()["stdlib"])


class CodeLine(NamedTuple):
    """A line of a file, numbered from 1."""

    path: Path
    line: int


def location_of(error: BaseException) -> CodeLine | None:
    """Return the line of the innermost call that is not in reptk, an installed package or the standard library.

    Of a SyntaxError that is the line which cannot be read, since nothing was called. None if there is no such line.
    """
    if isinstance(error, SyntaxError) and error.filename is not None and error.lineno is not None:
        path = Path(error.filename)
        if path.is_file():
            return CodeLine(path, error.lineno)
    location = None
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        if frame.lineno is not None and path.is_file() and not _is_library(path):
            location = CodeLine(path, frame.lineno)
    return location


def _is_library(path: Path) -> bool:
    if any(folder in path.parts for folder in INSTALLED_FOLDERS):
        return True
    return path.is_relative_to(PACKAGE_FOLDER) or path.is_relative_to(STANDARD_LIBRARY)


def shown_path(path: Path) -> str:
    """Return a path as a user would type it: from the current folder if it lies there."""
    path = Path(os.path.realpath(path))
    try:
        return str(path.relative_to(os.path.realpath(os.curdir)))
    except ValueError:
        return str(path)
