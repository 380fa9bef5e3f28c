"""How commands may end, and where they may write."""

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EXIT_CODES = {0, 2, 3, 4, 5, 130}


class Writes:
    """Notes the files and folders outside of `folder` that Python opens for writing, makes, renames or removes.

    What Python and numba cache of their code does not count, and neither does the key that the first index is signed with.
    """

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.outside: list[str] = []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None or event not in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        if not isinstance(arguments[0], str | bytes):  # a number of an open file
            return
        path = os.path.realpath(os.fsdecode(arguments[0]))
        data_home = os.path.realpath(os.environ["XDG_DATA_HOME"])
        is_allowed = path.startswith((str(self.folder), data_home, "/dev/", "/proc/")) or "__pycache__" in path
        if not is_allowed:
            self.outside.append(path)


WRITES = Writes()
# For the rest of the process: Python removes no hook, and without a folder this one does nothing.
sys.addaudithook(WRITES)


def check_one_message(code: int, stderr: str) -> None:
    """Assert that a code is documented, and that there is one error on standard error unless it is 0."""
    assert code in EXIT_CODES
    messages = re.findall(r"^error: .", stderr, re.MULTILINE)
    assert len(messages) == (code != 0)
    assert "Traceback" not in stderr


def run(command: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Run a command in this process and return its exit code. An exception fails the test with the command line."""
    try:
        return command(arguments)
    except SystemExit as end:  # --help
        return end.code
    except Exception as error:
        pytest.fail(f"{type(error).__name__}: {error}, of {shortened(arguments)}")


def explain(check: Callable[[int, str], None], arguments: list[str], code: int, stderr: str) -> None:
    try:
        check(code, stderr)
    except AssertionError:
        pytest.fail(f"exit code {code} of {shortened(arguments)}: {stderr[:500]!r}")


def shortened(arguments: list[str]) -> list[str]:
    return [argument if len(argument) < 100 else f"{argument[:90]}... ({len(argument)})" for argument in arguments]
